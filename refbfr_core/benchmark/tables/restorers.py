"""What fills the lines of a table, by name.

    restorer = build_restorer("ReF-LDM", "toy")
    pictures = restorer(lq, references, seeds=[7], names=["anna"])
    theirs = folder_restorer("DiffBIR", "results/diffbir")

A result depends on the pictures, the references and the seeds alone. On a CPU every picture passes through the networks
by itself, so that it is the same to the last bit in any batch; a GPU rounds differently in batches of different size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refbfr_core.benchmark.tables.folders import UnchangedPictureWarning, folder_restorer
from refbfr_core.benchmark.tables.pipeline_restorers import MOST_REFERENCES, TOY_SETTINGS, pipeline_restorer
from refbfr_core.benchmark.tables.restorer import Restorer, Run, digest_of
from refbfr_core.benchmark.tables.systems import COARSE, FILE, FOLDER, INPUT, SystemEntry, system_entry
from refbfr_core.benchmark.tables.variants import VARIANTS
from refbfr_core.devices import pick_device
from refbfr_core.errors import ConfigError, WeightsError
from refbfr_core.images import from_network, to_network

__all__ = [
    "MOST_REFERENCES",
    "TOY_SETTINGS",
    "Restorer",
    "Run",
    "UnchangedPictureWarning",
    "build_restorer",
    "digest_of",
    "folder_restorer",
]


def build_restorer(
    system: str,
    profile: str = "toy",
    device: str | torch.device | None = None,
    *,
    root: str | Path | None = None,
    path: str | Path | None = None,
    **options: Any,
) -> Restorer:
    """The restorer of a system or variant that runs here.

    Args:
        system: a key of `SYSTEMS` or of `VARIANTS`.
        profile: "toy" (drawn faces, networks that ship) or "paper" (photographs of 512 px, the authors' weights).
        device: None picks the first GPU, else the CPU.
        root: a folder of one's own networks, see `refbfr_core.load_pipeline`.
        path: for systems that run from a file, that file instead of the downloaded one.
        options: keywords of every call of a pipeline, such as ``num_inference_steps=``; ``coarse=`` (a name or a path,
            see `refbfr_core.pipelines.named_coarse`); for DiffMAC ``second=`` (a label); for a file ``weight=`` or
            ``resize=`` of `refbfr_core.pipelines.spandrel_restorer`.

    Raises:
        UnknownNameError: another system or profile. WeightsError: it only comes from a folder, it does not run on this
            profile, or its weights are missing; the message says what to get. ConfigError: options it does not have.
    """
    from refbfr_core.weights.registry import check_profile

    check_profile(profile)
    variant = VARIANTS.get(system)
    entry = system_entry(system if variant is None else variant.system)
    if variant is not None:
        options = {**variant.options, **options}
    if entry.run == FOLDER or profile not in entry.profiles:
        raise _not_here(system, entry, profile)
    device = pick_device(device)
    if entry.pipeline:
        return pipeline_restorer(system, entry, profile, device, root, options)
    if entry.run == FILE:
        return _from_file(entry, device, path, options)
    _refuse(system, options)
    if system == INPUT:
        return Restorer(INPUT, lambda lq, references, seeds, names: lq.clone(), {}, digest_of({}))
    return _coarse_network(device)


def _not_here(system: str, entry: SystemEntry, profile: str) -> WeightsError:
    if entry.run != FOLDER and not entry.reason:
        return WeightsError(
            f"{system} restores aligned photographs of 512 px, so it does not run on the profile {profile!r}; take "
            f"'paper', with its authors' file: refbfr weights get {entry.assets[0]}."
        )
    where = "" if entry.run == FOLDER else f" on the profile {profile!r}"
    whose = f" ({entry.page})" if entry.page else ""
    return WeightsError(
        f"{system} does not run here{where}: {entry.reason}. Restore the pictures with its authors' code{whose} and "
        f"score the folder: --results {system}=FOLDER."
    )


def _refuse(system: str, options: Mapping[str, Any]) -> None:
    if options:
        raise ConfigError(f"{system} has no options {', '.join(sorted(options))}; leave them out.")


def _coarse_network(device: torch.device) -> Restorer:
    from refbfr_core.weights import load_network

    network = load_network("coarse", device=device)

    def run(lq: Tensor, references: Tensor | None, seeds: list[int], names: list[str]) -> Tensor:
        # One by one: kernels differ in their last bits with the size of the batch.
        return torch.cat([from_network(network.restore(to_network(row).to(device))) for row in lq.split(1)])

    return Restorer(COARSE, run, {"profile": "toy"}, digest_of({"coarse": network}))


def _from_file(
    entry: SystemEntry, device: torch.device, path: str | Path | None, options: Mapping[str, Any]
) -> Restorer:
    """A network that spandrel reads, as a restorer of pictures in [0, 1]."""
    from refbfr_core.pipelines import coarse_picture, spandrel_restorer

    known = {"CodeFormer": {"weight"}, "FeMaSR": {"resize"}}.get(entry.name, set())
    _refuse(entry.name, {key: value for key, value in options.items() if key not in known})
    options = {"resize": "before", **options} if "resize" in known else dict(options)
    if path is None:
        from refbfr_core.weights import asset_path

        path = asset_path(entry.assets[0])
    restorer = spandrel_restorer(path, device, **options)
    if restorer.architecture != entry.name:
        raise WeightsError(
            f"{path} holds a {restorer.architecture}, not {entry.name}; take the authors' file ({entry.page})."
        )

    def run(lq: Tensor, references: Tensor | None, seeds: list[int], names: list[str]) -> Tensor:
        return from_network(coarse_picture(restorer, to_network(lq)))

    settings = {"profile": "paper", "file": Path(path).name, "sha256": restorer.sha256, **options}
    if restorer.weight is not None:
        settings["weight"] = restorer.weight
    return Restorer(entry.name, run, settings, restorer.sha256[:16])
