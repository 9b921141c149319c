"""Views: everything that changes between two photos of the same drawn person."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import unknown_name
from .identity import Identities, Numbers, split_generator

VIEW_NAMES: tuple[str, ...] = (
    "yaw",
    "pitch",
    "roll",
    "smile",
    "mouth_open",
    "teeth",
    "brow_raise",
    "brow_frown",
    "lids",
    "gaze_x",
    "gaze_y",
    "light_azimuth",
    "light_elevation",
    "light_strength",
    "light_warmth",
    "ambient",
    "exposure",
    "rim",
    "background_hue",
    "background_saturation",
    "background_value",
    "background_kind",
    "background_u",
    "background_v",
    "glasses",
    "glasses_shape",
    "glasses_colour",
    "clothes_hue",
    "clothes_value",
    "neckline",
    "shift_x",
    "shift_y",
    "scale",
    "distance",
    "hair_sway",
)
_INDEX = {name: i for i, name in enumerate(VIEW_NAMES)}


@dataclass(frozen=True)
class Views:
    """Views of a list of people. ``vector``: ``(people, views, len(VIEW_NAMES))`` float32 in [-1, 1].

    ``yaw = ±1`` is ±40°, ``pitch`` ±16°, ``roll`` ±10°. ``views["yaw"]`` is one column; ``replace(yaw=0.5)`` edits;
    a slice or list selects people.
    """

    vector: Tensor

    @property
    def people(self) -> int:
        """Number of people."""
        return self.vector.shape[0]

    @property
    def views(self) -> int:
        """Number of views of each person."""
        return self.vector.shape[1]

    def __len__(self) -> int:
        return self.vector.shape[0]

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.vector[:, :, _column(key)]
        if isinstance(key, int):
            key = range(len(self))[key]
            key = slice(key, key + 1)
        return Views(self.vector[key])

    def replace(self, **values: float | Tensor) -> Views:
        """Copy with some named numbers changed, for example ``views.replace(yaw=0.0, glasses=-1.0)``."""
        vector = self.vector.clone()
        for name, value in values.items():
            vector[:, :, _column(name)] = torch.as_tensor(value, dtype=vector.dtype)
        return Views(vector)


def _column(name: str) -> int:
    if name not in _INDEX:
        raise unknown_name("view number", name, VIEW_NAMES)
    return _INDEX[name]


def sample_views(identities: Identities, n: int, seed: int = 0) -> Views:
    """Draw ``n`` views for each person; view ``j`` of a person depends on ``seed``, ``j`` and that person only.

    The head pose is drawn with a peak at the front (triangular), as in photo collections. Raises ``ValueError`` for
    ``n < 1``.
    """
    if n < 1:
        raise ValueError(f"need at least one view, got n={n}")
    people = []
    for i in range(len(identities)):
        # The person's own numbers enter the stream so that a selected subset keeps the views it had.
        key = int((identities.vector[i].double().abs() * 1e6).sum().item()) % (2**31)
        generator = split_generator(identities.split, seed * 7919 + key, 0, stream=2)
        drawn = torch.rand(n, len(VIEW_NAMES) + 3, generator=generator) * 2 - 1  # row by row: view j needs no other
        raw, second = drawn[:, :-3], drawn[:, -3:]
        for k, name in enumerate(("yaw", "pitch", "roll")):
            raw[:, _INDEX[name]] = 0.5 * (raw[:, _INDEX[name]] + second[:, k]) * (1.0 if k else 1.15)
        people.append(raw.clamp(-1, 1))
    return Views(torch.stack(people))


def numbers_of(views: Views, device: torch.device | str = "cpu") -> Numbers:
    """Named view numbers of all ``people * views`` pictures on a device, for the painters."""
    return Numbers(views.vector.flatten(0, 1).to(device), _INDEX)
