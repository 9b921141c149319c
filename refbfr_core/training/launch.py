"""`run`: one call from a recipe's name to exported weights, shared by Python, the command line and `accelerate
launch`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from refbfr_core.errors import ConfigError
from refbfr_core.faces.dataset import FaceCache, Renderer, toy_faces
from refbfr_core.training.coarse import CoarseTask
from refbfr_core.training.condition_features import FeatureCache
from refbfr_core.training.data import open_faces
from refbfr_core.training.dcvqr import DCVQRTask
from refbfr_core.training.diffmac_base import DiffusionBaseTask
from refbfr_core.training.diffmac_recipes import (
    KLFirstStageRecipe,
    MomentDiffusionRecipe,
    StageOneRecipe,
    StageTwoRecipe,
)
from refbfr_core.training.embedder import EmbedderTask
from refbfr_core.training.export import export_network
from refbfr_core.training.first_stage import FirstStageTask
from refbfr_core.training.injection import InjectionTask
from refbfr_core.training.kl_first_stage import KLFirstStageTask
from refbfr_core.training.latent_prior import LatentPriorTask
from refbfr_core.training.latents import LatentCache
from refbfr_core.training.ldbfr_recipes import DCVQRRecipe, InjectionRecipe, LatentPriorRecipe
from refbfr_core.training.loop import Task, make_accelerator, train
from refbfr_core.training.mechanisms import MechanismTask, PlainTask, export_mechanism
from refbfr_core.training.modulation import FineTuned, StageOneTask, export_fine_tuned
from refbfr_core.training.perceptual import PerceptualTask
from refbfr_core.training.pixel_diffusion import PixelDiffusionTask
from refbfr_core.training.recipes import (
    CoarseRecipe,
    EmbedderRecipe,
    FirstStageRecipe,
    MechanismRecipe,
    PerceptualRecipe,
    PixelDiffusionRecipe,
    PlainRecipe,
    Recipe,
    RefLDMIdentityRecipe,
    RefLDMRecipe,
    recipe,
)
from refbfr_core.training.records import CHECKPOINT, load_checkpoint
from refbfr_core.training.refldm import RefLDMTask
from refbfr_core.training.refldm_identity import IdentityTargets, RefLDMIdentityTask
from refbfr_core.training.second_stage import StageTwoTask
from refbfr_core.training.stage_one_outputs import StageOneOutputs

DATA_VARIABLE = "REFBFR_DATA"


def run(
    name: str,
    *,
    out: str | Path,
    data: str | Path | None = None,
    resume: bool = False,
    minutes: float | None = None,
    device: str | None = None,
    workers: int | str | None = None,
    renderer: Renderer = toy_faces,
    **changes: Any,
) -> Path:
    """Train the recipe ``name`` and export the averaged network; returns the folder of the exported network.

    Parameters
    ----------
    name : "embedder-guide", "embedder-judge", "refldm-vq", "refldm-base" or another of `RECIPES`.
    out : folder of the run: ``checkpoint.pt``, ``log.jsonl`` and ``export/<network>``.
    data : folder of the caches of drawn faces and latents, made when they are missing; default: the environment
    variable
        REFBFR_DATA, else ``data`` here. May be shared by all runs.
    resume : go on from the checkpoint in ``out``.
    minutes : stop (with a checkpoint and an export) after this time.
    device : "cpu" keeps a training off a GPU that is there.
    workers : processes that draw faces and encode latents, default one a core.
    changes : values of the recipe to change, see `recipe`.

    Raises
    ------
    UnknownNameError : no such recipe or value. ConfigError, CacheError, OutputError : see `train` and the caches.
    """
    chosen = recipe(name, **changes)
    if minutes is not None and minutes <= 0:
        raise ConfigError(f"minutes={minutes} leaves no time to train; give a positive number, or none for no limit.")
    out, data = Path(out), Path(data or os.environ.get(DATA_VARIABLE) or "data")
    accelerator = make_accelerator(chosen, device)
    if resume and chosen.people == 0:
        # "Everybody on disk" was decided when the run began; more people may have been drawn since.
        chosen_people = int(load_checkpoint(out)["facts"]["people"])
    elif not resume and (out / CHECKPOINT).is_file():
        raise ConfigError(f"{out} already holds a training; pass resume to continue it, or choose another folder.")
    else:
        chosen_people = chosen.people
    with accelerator.main_process_first():
        task = make_task(chosen, data, accelerator, chosen_people, None if workers is None else int(workers), renderer)
    summary = train(task, out, accelerator, resume=resume, minutes=minutes)
    folder = out / "export" / chosen.network
    if accelerator.is_main_process:
        network = summary.pop("average").network
        task.finish(network)
        export = export_mechanism if isinstance(task, MechanismTask) else export_network
        export = export_fine_tuned if isinstance(network, FineTuned) else export
        folder = export(network, chosen, name, summary, task.facts, task.about(), out / "export")
    accelerator.wait_for_everyone()
    return folder


def make_task(
    chosen: Recipe, data: Path, accelerator: Accelerator, people: int, workers: int | None, renderer: Renderer
) -> Task:
    """The task of a recipe with its data in place."""
    with _progress("faces", accelerator) as progress:
        faces, val = open_faces(replace(chosen, people=people), data, workers, renderer, progress)
    if isinstance(chosen, EmbedderRecipe):
        return EmbedderTask(chosen, faces, val)
    if isinstance(chosen, FirstStageRecipe):
        return FirstStageTask(chosen, faces, val)
    if isinstance(chosen, KLFirstStageRecipe):
        return KLFirstStageTask(chosen, faces, val)
    if isinstance(chosen, PixelDiffusionRecipe):
        return PixelDiffusionTask(chosen, faces, val)
    if isinstance(chosen, CoarseRecipe):
        return CoarseTask(chosen, faces, val)
    if isinstance(chosen, PerceptualRecipe):
        return PerceptualTask(chosen, faces, val)
    if isinstance(chosen, DCVQRRecipe):
        return DCVQRTask(chosen, faces, val)
    if isinstance(chosen, (LatentPriorRecipe, InjectionRecipe)):
        return _ldbfr_stage_two(chosen, data, accelerator, faces, val, workers)
    if isinstance(chosen, MomentDiffusionRecipe):
        return _diffmac(chosen, data, accelerator, faces, val, workers)
    if isinstance(chosen, RefLDMRecipe):
        workers = (os.cpu_count() or 1) if workers is None else workers
        on_gpu = accelerator.device.type != "cpu"
        settings = (chosen.first_stage or None, chosen.degradations, chosen.lq_variants)
        caches = []
        for source, flips in ((faces, chosen.flips), (val, False)):
            cache = LatentCache(data, source, *settings, flips, chosen.patch_size, str(accelerator.device))
            with _progress("latents", accelerator) as progress:
                cache.build(0 if on_gpu else workers, max_bytes=32 * 2**30, progress=progress)
            caches.append(cache)
        if isinstance(chosen, PlainRecipe):
            return PlainTask(chosen, *caches)
        if isinstance(chosen, MechanismRecipe):
            return MechanismTask(chosen, *caches)
        if isinstance(chosen, RefLDMIdentityRecipe):
            targets = None
            if chosen.scale != "none":
                made = IdentityTargets(data, caches[0], chosen.embedder, str(accelerator.device))
                with _progress("targets", accelerator) as progress:
                    targets = made.build(0 if on_gpu else workers, progress=progress).embeddings
            return RefLDMIdentityTask(chosen, *caches, targets)
        return RefLDMTask(chosen, *caches)
    raise ConfigError(f"no training belongs to a {type(chosen).__name__}.")


def _cache_workers(accelerator: Accelerator, workers: int | None) -> int:
    """Processes that fill a cache: none beside a GPU, which this process uses itself; by default one a core."""
    return 0 if accelerator.device.type != "cpu" else (os.cpu_count() or 1) if workers is None else workers


def _ldbfr_stage_two(
    chosen: LatentPriorRecipe | InjectionRecipe,
    data: Path,
    accelerator: Accelerator,
    faces: FaceCache,
    val: FaceCache,
    workers: int | None,
) -> Task:
    """LD-BFR's diffusion or its injection, with latents and, for the injection, conditions in place."""
    device = str(accelerator.device)
    workers = _cache_workers(accelerator, workers)
    made = []
    for source in (faces, val):
        flips = source is faces and getattr(chosen, "flips", True)
        caches = [LatentCache(data, source, chosen.first_stage or None, (), 0, flips, 1, device, "ldbfr-vqo")]
        if isinstance(chosen, InjectionRecipe):
            settings = (chosen.stage_one or None, chosen.degradations, chosen.lq_variants, device)
            caches.append(FeatureCache(data, source, *settings))
        for cache in caches:
            with _progress("latents", accelerator) as progress:
                cache.build(workers, max_bytes=32 * 2**30, progress=progress)
        made.append(tuple(caches))
    if isinstance(chosen, InjectionRecipe):
        return InjectionTask(chosen, *made)
    return LatentPriorTask(chosen, made[0][0], made[1][0])


def _diffmac(
    chosen: MomentDiffusionRecipe,
    data: Path,
    accelerator: Accelerator,
    faces: FaceCache,
    val: FaceCache,
    workers: int | None,
) -> Task:
    """A diffusion of DiffMAC with the moments of its pictures in place."""
    device = str(accelerator.device)
    workers = _cache_workers(accelerator, workers)
    degradations, variants = getattr(chosen, "degradations", ()), getattr(chosen, "lq_variants", 0)
    caches = []
    for source, flips in ((faces, chosen.flips), (val, False)):
        cache = LatentCache(
            data, source, chosen.first_stage or None, degradations, variants, flips, 1, device, "diffmac-vae"
        )
        with _progress("moments", accelerator) as progress:
            cache.build(workers, max_bytes=32 * 2**30, progress=progress)
        caches.append(cache)
    if isinstance(chosen, StageTwoRecipe):
        outputs = [StageOneOutputs(data, cache, chosen, device) for cache in caches]
        for made in outputs:
            with _progress("stage 1", accelerator) as progress:
                made.build(workers, max_bytes=32 * 2**30, progress=progress)
        return StageTwoTask(chosen, *zip(caches, outputs, strict=True))
    return (StageOneTask if isinstance(chosen, StageOneRecipe) else DiffusionBaseTask)(chosen, *caches)


class _progress:
    """A bar for building caches, as the callback that they take; hidden under CI and off a terminal."""

    def __init__(self, what: str, accelerator: Accelerator) -> None:
        self.what = what
        self.hidden = True if os.environ.get("CI") or not accelerator.is_main_process else None
        self.bar: tqdm | None = None

    def __enter__(self) -> Callable[[int, int], None]:
        return self._update

    def _update(self, done: int, total: int) -> None:
        if self.bar is None or self.bar.total != total:
            self.bar = tqdm(total=total, desc=self.what, unit="person", disable=self.hidden)
        self.bar.update(done - self.bar.n)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
