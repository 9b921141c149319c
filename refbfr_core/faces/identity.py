"""Identities: everything that stays with a drawn person from one photo to the next.

An identity is a vector of independent numbers, uniform in [-1, 1]. The painters turn it into geometry and colour
through :mod:`.traits`; what is correlated in people (age and grey hair, beard and the rest of the face) is correlated
there, so that the vector itself stays simple enough to edit by hand in a notebook.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import unknown_name

_GEOMETRY = (
    "head_width",
    "head_height",
    "head_depth",
    "jaw_width",
    "jaw_length",
    "chin_point",
    "chin_forward",
    "cheekbone",
    "cheek_fullness",
    "forehead",
    "brow_ridge",
    "eye_spacing",
    "eye_height",
    "eye_size",
    "eye_open",
    "eye_tilt",
    "eye_depth",
    "lid_crease",
    "nose_length",
    "nose_width",
    "nose_bridge",
    "nose_tip",
    "nose_height",
    "nose_hump",
    "mouth_width",
    "mouth_height",
    "lip_upper",
    "lip_lower",
    "cupid_bow",
    "mouth_corner",
    "philtrum",
    "ear_size",
    "ear_out",
    "ear_height",
    "asymmetry_eye",
    "asymmetry_mouth",
    "nose_side",
    "neck_width",
)
_SURFACE = (
    "masculinity",
    "age",
    "skin_tone",
    "skin_hue",
    "skin_red",
    "skin_gloss",
    "iris_colour",
    "iris_light",
    "iris_ring",
    "brow_thickness",
    "brow_height",
    "brow_arch",
    "brow_tilt",
    "brow_length",
    "brow_dark",
    "lip_colour",
    "lip_dark",
    "blush",
    "lash",
    "freckles",
    "freckle_size",
    "under_eye",
)
_HAIR = (
    "hair_style",
    "hair_tone",
    "hair_warmth",
    "hair_grey",
    "hair_volume",
    "hair_line",
    "hair_recession",
    "hair_part",
    "hair_length",
    "hair_wave",
    "hair_gloss",
    "fringe",
    "beard_style",
    "beard_density",
    "sideburn",
)
MOLES = 4
_MARKS = tuple(f"mole{i}_{part}" for i in range(MOLES) for part in ("a", "b", "size")) + (
    "scar_a",
    "scar_b",
    "scar_angle",
    "scar_length",
    "noise_u",
    "noise_v",
)
IDENTITY_NAMES: tuple[str, ...] = _GEOMETRY + _SURFACE + _HAIR + _MARKS
_INDEX = {name: i for i, name in enumerate(IDENTITY_NAMES)}

SPLITS: dict[str, int] = {"train": 1, "judge": 2, "val": 3, "test": 4}


def split_generator(split: str, seed: int, index: int, stream: int = 0) -> torch.Generator:
    """Generator of the ``index``-th person of a split: streams of different splits never meet.

    Raises ``UnknownNameError`` for a split that does not exist.
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    mixed = (seed * 1_000_003 + index) * 16 + SPLITS[split]
    return torch.Generator().manual_seed((mixed * 64 + stream) % (2**63 - 1))


@dataclass(frozen=True)
class Identities:
    """A list of drawn people.

    ``vector``: ``(n, len(IDENTITY_NAMES))`` float32 in [-1, 1]; ``split`` and ``seed`` say where they were drawn from.
    Indexing with a slice or a list keeps the type; ``ids["skin_tone"]`` is one column; ``replace(age=0.9)`` edits.
    """

    vector: Tensor
    split: str = "train"
    seed: int = 0

    def __len__(self) -> int:
        return self.vector.shape[0]

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.vector[:, _column(key)]
        if isinstance(key, int):
            key = range(len(self))[key]
            key = slice(key, key + 1)
        return Identities(self.vector[key], self.split, self.seed)

    def replace(self, **values: float | Tensor) -> Identities:
        """Copy with some named numbers changed, for example ``ids.replace(skin_tone=-1.0, age=0.8)``."""
        vector = self.vector.clone()
        for name, value in values.items():
            vector[:, _column(name)] = torch.as_tensor(value, dtype=vector.dtype)
        return Identities(vector, self.split, self.seed)


def _column(name: str) -> int:
    if name not in _INDEX:
        raise unknown_name("identity number", name, IDENTITY_NAMES)
    return _INDEX[name]


def sample_identities(n: int, seed: int = 0, split: str = "train") -> Identities:
    """Draw ``n`` people; person ``i`` depends on ``(split, seed, i)`` only.

    Skin tone is stratified: ten consecutive people always cover the ten steps of the Monk scale, in a random order.
    Raises ``ValueError`` for ``n < 1``.
    """
    if n < 1:
        raise ValueError(f"need at least one identity, got n={n}")
    rows = []
    for i in range(n):
        row = torch.rand(len(IDENTITY_NAMES), generator=split_generator(split, seed, i)) * 2 - 1
        order = torch.randperm(10, generator=split_generator(split, seed, i // 10, stream=1))
        row[_INDEX["skin_tone"]] = (order[i % 10] + (row[_INDEX["skin_tone"]] + 1) / 2) / 5 - 1
        rows.append(row)
    return Identities(torch.stack(rows), split, seed)


class Numbers:
    """Read-only view of named columns as ``(B, 1, 1, 1)`` tensors, scaled to a wanted range.

    ``numbers("eye_size", 0.1, 0.2)`` maps [-1, 1] to that range; with no range the raw number comes back.
    """

    def __init__(self, vector: Tensor, index: dict[str, int]) -> None:
        self.vector, self._index = vector, index

    def rows(self, part: slice) -> Numbers:
        """The same names for some of the rows."""
        return Numbers(self.vector[part], self._index)

    def __call__(self, name: str, low: float = -1.0, high: float = 1.0) -> Tensor:
        value = self.vector[:, self._index[name]].view(-1, 1, 1, 1)
        return value * (0.5 * (high - low)) + 0.5 * (high + low)

    def chance(self, name: str) -> Tensor:
        """The number as a position in [0, 1), for choices."""
        return (self(name) + 1) * 0.5


def numbers_of(identities: Identities, device: torch.device | str = "cpu") -> Numbers:
    """Named identity numbers on a device, for the painters."""
    return Numbers(identities.vector.to(device), _INDEX)
