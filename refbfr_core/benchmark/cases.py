"""The cases of the reference study: for every unseen person a ruined picture, the truth, and two sets of references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refbfr_core.degradation import Degradation, DegradationRecord
from refbfr_core.faces import Rendering, ToyFaces


@dataclass(frozen=True)
class Cases:
    """A batch of cases; row i belongs to the person with index `people[i]` of the study.

    `truth`, `lq` (B, 3, H, W); `right`, `wrong` (B, R, 3, H, W): other views of the person, and as many of the next
    person of the study. `seeds` are the noise seeds: one a person, the same in every arm.
    """

    people: tuple[int, ...]
    truth: Tensor
    lq: Tensor
    right: Tensor
    wrong: Tensor
    seeds: list[int]
    degradations: list[DegradationRecord]

    def __len__(self) -> int:
        return len(self.people)

    def select(self, row: int) -> Cases:
        """One case as a batch of one."""
        rows = slice(row, row + 1)
        parts = (self.truth, self.lq, self.right, self.wrong, self.seeds, self.degradations)
        return Cases(self.people[rows], *(part[rows] for part in parts))


def make_cases(
    people: Sequence[int],
    total: int,
    *,
    preset: str,
    references: int,
    seed: int = 0,
    split: str = "test",
    resolution: int = 128,
) -> Cases:
    """Draws the cases of some people of a study of `total`; a person's case never depends on who else is in the batch.

    Args:
        people: indices in 0 ... total - 1.
        preset: degradation of the pictures to restore.
        references: R, other views of each person.
        seed: of people, views, degradation and noise alike.

    Raises:
        UnknownNameError: an unknown preset or split.
    """
    strangers = [next_person(index, total) for index in people]
    needed = sorted({*people, *strangers})
    images = draw_people(needed, total, 1 + references, seed=seed, split=split, resolution=resolution).images
    place = {index: row for row, index in enumerate(needed)}
    own = images[[place[index] for index in people]]
    wrong = images[[place[index] for index in strangers], 1:]
    seeds = [case_seed(index, seed) for index in people]
    lq, records = Degradation.preset(preset)(own[:, 0].contiguous(), seeds=seeds)
    # A plain copy: the renderer works in inference mode, whose tensors cannot be used everywhere.
    truth, right, wrong = (torch.empty_like(part).copy_(part) for part in (own[:, 0], own[:, 1:], wrong))
    return Cases(tuple(people), truth, lq, right, wrong, seeds, records)


def draw_people(
    people: Sequence[int], total: int, views: int, *, seed: int = 0, split: str = "test", resolution: int = 128
) -> Rendering:
    """Draws some people of a study of `total`, `views` pictures of each: the first is the truth, the others references.

    A person's pictures depend on `seed`, `split` and the index only, whoever else is drawn.
    """
    faces = ToyFaces(resolution)
    identities = faces.identities(total, seed, split=split)[list(people)]
    return faces.render(identities, faces.views(identities, views, seed))


def next_person(index: int, total: int) -> int:
    """The person of a study of `total` whose pictures are the wrong references of person `index`."""
    return (index + 1) % total


def case_seed(index: int, seed: int) -> int:
    """The seed of degradation and noise of person `index` in a study with `seed`."""
    return seed * 1_000_000 + index
