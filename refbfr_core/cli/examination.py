"""What `refbfr doctor` looks at: versions, device, weights, photographs, datasets, extras. It changes nothing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGE = "refbfr_core"
OK, MISSING, BROKEN = "ok", "missing", "broken"


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `missing` is something optional, `broken` something the toy profile cannot do without."""

    section: str
    name: str
    status: str
    detail: str
    cure: str = ""


def examine() -> list[Finding]:
    """Look at everything and return the findings in the order people read them. Never touches the network."""
    sections: tuple[Callable[[], Iterator[Finding]], ...] = (
        _machine,
        _packages,
        _extras,
        _networks,
        _public_files,
        _metrics,
        _photographs,
        _datasets,
        _kernel,
    )
    return [finding for section in sections for finding in section()]


def is_broken(findings: list[Finding]) -> bool:
    """Tell whether something the toy profile needs is out of order."""
    return any(finding.status == BROKEN for finding in findings)


def _machine() -> Iterator[Finding]:
    where = f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield Finding("machine", "python", OK, f"{platform.python_version()} on {where}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        import torch
    except ImportError as error:
        yield Finding(
            "machine",
            "device",
            BROKEN,
            f"PyTorch cannot be imported: {error}",
            "reinstall: pip install --force-reinstall torch",
        )
        return
    threads = f"CPU with {cores} cores, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield Finding("machine", "device", OK, f"{threads}; no GPU seen, which the toy profile does not need")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(
            "machine", f"cuda:{index}", OK, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB; {threads}"
        )


def _requirements() -> dict[str, list[str]]:
    """Return what the package asks for, as written: "" for itself, then each extra by name."""
    from packaging.requirements import Requirement

    asked: dict[str, list[str]] = {"": []}
    extras = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    asked |= {extra: [] for extra in extras}
    for text in metadata.requires(PACKAGE) or []:
        requirement = Requirement(text)
        if requirement.name.replace("-", "_") == PACKAGE:
            continue
        for extra in asked:
            if requirement.marker is None:
                wanted = extra == ""
            else:
                wanted = requirement.marker.evaluate({"extra": extra}) and (
                    extra == "" or not requirement.marker.evaluate({"extra": ""})
                )
            if wanted:
                asked[extra].append(f"{requirement.name}{requirement.specifier}")
    return asked


def _problem(asked: str) -> tuple[str, str]:
    """Return (installed version or "", what is wrong or "") for a requirement such as "torch>=2.7"."""
    from packaging.requirements import Requirement

    requirement = Requirement(asked)
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return "", f"{asked} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return version, f"{requirement.name} {version} is installed, {requirement.specifier} is needed"
    return version, ""


def _packages() -> Iterator[Finding]:
    from refbfr_core import __version__

    yield Finding("packages", PACKAGE, OK, __version__)
    try:
        asked = _requirements()[""]
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages",
            "installation",
            MISSING,
            "running from a source tree that is not installed, so versions cannot be compared",
            "run `make workbook`, or pip install -e . in the clone",
        )
        return
    for requirement in sorted(asked):
        version, problem = _problem(requirement)
        name = requirement.split(">")[0].split("=")[0].split("<")[0].split("~")[0]
        cure = f"pip install '{requirement}'" if problem else ""
        yield Finding("packages", name, BROKEN if problem else OK, problem or version, cure)


def _extras() -> Iterator[Finding]:
    try:
        asked = _requirements()
    except metadata.PackageNotFoundError:
        return
    for extra, requirements in sorted(asked.items()):
        if not extra:
            continue
        problems = [problem for problem in (_problem(requirement)[1] for requirement in requirements) if problem]
        cure = f"pip install '{PACKAGE}[{extra}]', or `make workbook`, which installs all extras" if problems else ""
        detail = "; ".join(problems) or ", ".join(sorted(requirements))
        yield Finding("extras", extra, MISSING if problems else OK, detail, cure)


def _networks() -> Iterator[Finding]:
    from refbfr_core.errors import WeightsError
    from refbfr_core.weights import NETWORKS, shipped_root, verify_network

    for name, entry in NETWORKS.items():
        if not entry.shipped:
            continue
        try:
            record = verify_network(shipped_root("toy") / name)
        except WeightsError as error:
            yield Finding(
                "weights, toy",
                name,
                BROKEN,
                str(error),
                "in a clone: git checkout -- refbfr_core/weights/toy; else reinstall the package",
            )
            continue
        size = sum(item["bytes"] for item in record["files"]) / 2**20
        yield Finding(
            "weights, toy", name, OK, f"{record['parameters']:,} parameters, {size:.1f} MiB, every byte as on its card"
        )
    for name, entry in NETWORKS.items():
        for profile in entry.published:
            yield _published_network(name, profile)


def _published_network(name: str, profile: str) -> Finding:
    from refbfr_core.errors import WeightsError
    from refbfr_core.weights import network_entry, published_root, verify_network
    from refbfr_core.weights.places import how_to_get

    folder, section = published_root(profile) / name, f"weights, {profile}"
    published = network_entry(name).published[profile]
    if not folder.exists():
        detail = f"{published.filename} does not come with the package"
        return Finding(section, name, MISSING, detail, how_to_get(network_entry(name), profile))
    try:
        record = verify_network(folder)
    except WeightsError as error:
        return Finding(section, name, MISSING, str(error), f"refbfr weights import {published.filename}")
    source = record["card"].get("source", {})
    detail = (
        f"{record['parameters']:,} parameters from {source.get('file')}, SHA-256 {source.get('sha256')}; in {folder}"
    )
    return Finding(section, name, OK, f"{detail} (licence: {published.licence})")


def _public_files() -> Iterator[Finding]:
    """Files of other systems and of metrics: those that are here, by name and size only, and how many are not."""
    from refbfr_core.weights import ASSETS, asset_state

    section, states = "public files", {name: asset_state(name) for name in ASSETS}
    for name, state in states.items():
        if state.path is not None:
            altered = state.state == "altered"
            cure = f"refbfr weights get {name} --replace" if altered else ""
            yield Finding(section, name, MISSING if altered else OK, state.detail, cure)
    absent = sum(state.path is None for state in states.values())
    detail = f"{absent} of {len(states)} are not on this machine; the toy profile needs none"
    yield Finding(section, "others", OK, f"{detail}. refbfr weights list names them, refbfr weights get NAME fetches")


def _metrics() -> Iterator[Finding]:
    from refbfr_core.metrics import REGISTRY, unavailable

    reasons = {name: unavailable(name) for name in REGISTRY}
    ready = [name for name, reason in reasons.items() if reason is None]
    yield Finding("metrics", "ready", OK, ", ".join(ready))
    for name, reason in reasons.items():
        if reason is not None:
            yield Finding("metrics", name, MISSING, "cannot be computed as things are", reason)


def _photographs() -> Iterator[Finding]:
    from refbfr_core.faces.photos import HOW_TO_GET, find_packs, models_root

    packs = find_packs()
    if packs:
        yield Finding(
            "photographs", "InsightFace pack", OK, ", ".join(f"{name} in {folder}" for name, folder in packs.items())
        )
    else:
        yield Finding("photographs", "InsightFace pack", MISSING, f"none under {models_root()}", HOW_TO_GET)


def _datasets() -> Iterator[Finding]:
    cache = os.environ.get("REFBFR_DATA") or "data"
    yield Finding(
        "datasets", "drawn faces", OK, f"rendered when needed, nothing to fetch; training keeps its own in {cache}"
    )
    page = "https://github.com/ChiWeiHsiao/ref-ldm/releases/tag/0.1.0"
    yield Finding(
        "datasets",
        "FFHQ-Ref, CelebA-Test-Ref",
        MISSING,
        "photographs of the paper profile do not come with the package",
        f"their owners publish the lists and test pictures at {page} (non-commercial)",
    )


def _kernel() -> Iterator[Finding]:
    """Notebooks run in the kernel called python3; it has to be this Python, or they see other libraries."""
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        return  # the extra is reported as missing already
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        yield Finding("notebooks", "kernel", MISSING, "there is no kernel called python3", "pip install ipykernel")
        return
    same = Path(command).name == command or Path(command).absolute() == Path(sys.executable).absolute()
    cure = "" if same else f"{sys.executable} -m ipykernel install --sys-prefix --name python3"
    detail = "python3 runs this Python" if same else f"python3 runs {command}, not {sys.executable}"
    yield Finding("notebooks", "kernel", OK if same else MISSING, detail, cure)
