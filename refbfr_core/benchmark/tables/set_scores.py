"""Distances between the pictures of an arm, taken together, and a set of clean ones: FID, KID and their toy twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from refbfr_core.benchmark.rows import OK
from refbfr_core.benchmark.tables.results import TRUTH, TableRun, picture_path
from refbfr_core.benchmark.tables.systems import Arm
from refbfr_core.devices import pick_device
from refbfr_core.errors import ConfigError, ImageContractError, RefbfrError
from refbfr_core.faces import ToyFaces
from refbfr_core.images import read_image
from refbfr_core.metrics import SET_REGISTRY, fit_moments, set_distance
from refbfr_core.metrics.distances import LEAST
from refbfr_core.metrics.inception import load_inception
from refbfr_core.metrics.textures import load_textures

CLEAN_PEOPLE = 256
"""Drawn people of split "val" that the toy twins compare with."""

_COLUMNS = ["dataset", "system", "references", "metric", "value", "spread", "n", "reference", "column", "reason"]
_BATCH = 32


def score_sets(
    run: TableRun,
    metrics: Sequence[str],
    reference_sets: Mapping[str, Path] | None = None,
    allow_small: bool = False,
    device: str | torch.device | None = None,
) -> pd.DataFrame:
    """Set distances of every arm on every dataset, from the pictures that the run kept.

    Args:
        run: a run with pictures.
        metrics: names that `refbfr_core.metrics.set_distance` knows.
        reference_sets: dataset -> statistics file, or folder of clean pictures. Without one, the toy twins compare
            with clean drawn people, and the others with the true pictures of the dataset where there are any.
        allow_small: measure sets that are too small, too.

    Returns:
        One line a dataset, arm and metric: value, spread, n, reference, `column` (the full name with protocol, set and
        n) and `reason`, which says why there is no value, such as too few pictures. Nothing is left out silently.

    Raises:
        ConfigError: the run kept no pictures.
    """
    if run.pictures is None:
        raise ConfigError("distances between sets need the restored pictures; run with pictures=True and a folder.")
    lines = []
    spaces, known = _Spaces(device), {}
    for (dataset, system, references), rows in run.rows.groupby(["dataset", "system", "references"], sort=False):
        arm = Arm(system, references)
        good = rows[rows.status == OK]["item"]
        paths = [picture_path(run.pictures, dataset, str(arm), item) for item in good]
        for metric in metrics:
            line = dict.fromkeys(_COLUMNS, "") | {"dataset": dataset, "system": system, "references": references}
            line |= {"metric": metric, "value": float("nan"), "spread": float("nan"), "n": len(paths)}
            try:
                if len(paths) < LEAST and not allow_small:  # before any network is loaded and any picture drawn
                    raise ConfigError(
                        f"{len(paths)} pictures; sets below {LEAST} are refused unless asked for: --allow-small, or "
                        "allow_small=True."
                    )
                extractor = spaces.of(metric)
                if (metric, dataset) not in known:
                    known[metric, dataset] = _reference(metric, dataset, run, reference_sets or {}, extractor)
                reference, title = known[metric, dataset]
                pictures = _batches(paths)
                found = set_distance(metric, pictures, reference(), title, extractor=extractor, allow_small=allow_small)
                line |= {"value": found.value, "spread": found.spread, "reference": title, "column": found.column}
            except RefbfrError as error:
                line["reason"] = str(error)
            lines.append(line)
    return pd.DataFrame(lines, columns=_COLUMNS)


class _Spaces:
    """The networks of features, each loaded once."""

    def __init__(self, device: str | torch.device | None) -> None:
        self._device, self._known = pick_device(device), {}

    def of(self, metric: str) -> nn.Module:
        toy = metric.endswith("-toy")
        if toy not in self._known:
            self._known[toy] = load_textures(self._device) if toy else load_inception(device=self._device)
        return self._known[toy]


def _reference(
    metric: str, dataset: str, run: TableRun, given: Mapping[str, Path], extractor: nn.Module
) -> tuple[Callable[[], Any], str]:
    """What to compare with, as a function, since batches can be gone through only once; and its name."""
    if dataset in given and not Path(given[dataset]).is_dir():
        place = Path(given[dataset])
        return lambda: place, place.stem
    paths, title = _clean(metric, dataset, run, given)
    pictures = _clean_people() if paths is None else None
    source = (lambda: pictures) if paths is None else (lambda: _batches(paths))
    if SET_REGISTRY[metric].kind == "kernel":
        return source, title
    moments = fit_moments(source(), extractor, title)
    return lambda: moments, title


def _clean(
    metric: str, dataset: str, run: TableRun, given: Mapping[str, Path]
) -> tuple[Sequence[Path] | None, str]:
    """Files of clean pictures, None for those that are drawn, and what they are."""
    if dataset in given:
        return sorted(Path(given[dataset]).glob("*.png")), Path(given[dataset]).name
    if metric.endswith("-toy"):
        return None, "clean drawn people of split val"
    truths = sorted((run.pictures / "pictures" / dataset / TRUTH).glob("*.png"))
    if not truths:
        raise ConfigError(
            f"{metric} needs clean pictures to compare with and {dataset} has none; name a statistics file or a folder "
            f"with --reference-set {dataset}=PATH."
        )
    return truths, f"the {len(truths)} true pictures of {dataset}"


def _clean_people() -> Tensor:
    faces = ToyFaces(resolution=128)
    people = faces.identities(CLEAN_PEOPLE, seed=1, split="val")
    with torch.no_grad():
        images = faces.render(people, faces.views(people, 1, seed=1)).images[:, 0]
    return torch.empty_like(images).copy_(images)


def _batches(paths: Sequence[Path]) -> Iterator[Tensor]:
    """Pictures (B, 3, H, W), some at a time."""
    if not paths:
        raise ImageContractError("there is no picture in the set.")
    for start in range(0, len(paths), _BATCH):
        yield torch.cat([read_image(path) for path in paths[start : start + _BATCH]])
