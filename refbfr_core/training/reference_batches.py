"""Training samples from a dataset of photographs: made by worker processes, the same however the work is shared.

A step has `batch` slots. What lies in a slot (target, references, degradation, augmentation, noise, timestep, dropped
conditions) is a function of (seed, step, slot) alone, so that one process, eight, or a run resumed on another machine
train on the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from refbfr_core.degradation import Degradation
from refbfr_core.errors import ConfigError, RefbfrError
from refbfr_core.faces.reference_dataset import ReferenceDataset, first_references, picture_tensor, training_references
from refbfr_core.images import to_uint8
from refbfr_core.training.augment import ReferenceAugmentation
from refbfr_core.training.randomness import numbers, shuffled

Slot = tuple[int, int, int]
"""(step, slot, row of the dataset)."""

_LONGEST_SEED = 2**31


@dataclass(frozen=True)
class SampleMaker(Dataset):
    """Makes the sample of a slot; a picklable value, so that worker processes can have a copy.

    `references` of each sample (0 for none), `flip` the probability of mirroring a sample. Pictures come as bytes:
    ``truth``, ``lq`` (3, H, W), ``references`` (R, 3, H, W) uint8.
    """

    dataset: ReferenceDataset
    references: int
    degradation: str
    augmentation: ReferenceAugmentation
    flip: float
    seed: int

    def __getitem__(self, slot: Slot) -> dict[str, Tensor]:
        """The sample of (step, slot, row)."""
        step, place, row = slot
        draws = numbers(self.seed, 41, step, place)
        degradation_seed = int(draws.integers(_LONGEST_SEED))
        mirrored = bool(draws.random() < self.flip)
        truth = picture_tensor(self.dataset.open_truth(row))
        lq, _ = Degradation.preset(self.degradation)(truth, seeds=[degradation_seed])
        references = []
        if self.references:
            for name in training_references(self.dataset.rows[row].references, self.references, draws):
                picture = self.dataset.open_reference(name, row)
                references.append(self.augmentation(picture, int(draws.integers(_LONGEST_SEED))))
        sample = {"truth": _bytes(truth), "lq": _bytes(lq), "references": _stack(references, truth)}
        return mirror_sample(sample) if mirrored else sample

    def fixed(self, row: int) -> dict[str, Tensor]:
        """For validation: the row's first references as they are, one degradation for good, nothing mirrored."""
        truth = picture_tensor(self.dataset.open_truth(row))
        lq, _ = Degradation.preset(self.degradation)(truth, seeds=[int(numbers(0, 43, row).integers(_LONGEST_SEED))])
        names = first_references(self.dataset.rows[row].references, self.references)
        references = [self.dataset.open_reference(name, row) for name in names]
        return {"truth": _bytes(truth), "lq": _bytes(lq), "references": _stack(references, truth)}


@dataclass(frozen=True)
class Share:
    """Which slots of every step one of several equal processes does, in which pieces.

    Every process has as many pieces as the busiest one needs; those without a slot of their own for a piece get an
    empty one. Raises ConfigError for sizes that make no sense.
    """

    batch: int
    rank: int = 0
    world: int = 1
    micro_batch: int = 1

    def __post_init__(self) -> None:
        if self.micro_batch < 1 or self.batch < 1 or not 0 <= self.rank < self.world:
            raise ConfigError(
                f"batch={self.batch}, micro_batch={self.micro_batch}, rank {self.rank} of {self.world} processes do "
                "not fit; use sizes of at least 1."
            )

    def pieces(self) -> list[list[int]]:
        """The slots of this process, in pieces of at most `micro_batch`; together the processes have each slot once."""
        own = np.array_split(np.arange(self.batch), self.world)[self.rank]
        most = -(-self.batch // self.world)
        return [piece.tolist() for piece in np.array_split(own, -(-most // self.micro_batch))]

    def weight(self, piece: list[int]) -> float:
        """What the mean loss of a piece counts, so that the mean over processes of the sums is the batch's mean."""
        return len(piece) * self.world / self.batch


class PieceSampler(Sampler):
    """The slots of every piece from step ``first`` on, without end. An empty piece gets the step's first slot; its loss
    will not count."""

    def __init__(self, seed: int, weights: np.ndarray | None, rows: int, share: Share, first: int) -> None:
        self.seed, self.rows, self.share, self.first = seed, rows, share, first
        self.chances = None if weights is None else weights / weights.sum()

    def rows_of(self, step: int) -> np.ndarray:
        """The rows of all slots of a step: every row once a pass, or drawn by weight."""
        if self.chances is None:
            return shuffled(self.seed, step, self.rows, self.share.batch)
        return numbers(self.seed, 47, step).choice(self.rows, self.share.batch, p=self.chances)

    def __iter__(self) -> Iterator[list[Slot]]:
        step = self.first
        while True:
            rows = self.rows_of(step)
            for piece in self.share.pieces():
                yield [(step, slot, int(rows[slot])) for slot in piece or [0]]
            step += 1


class PieceLoader:
    """Pieces in order, made ahead of time by ``workers`` processes (0: in this one)."""

    def __init__(self, maker: SampleMaker, weighted: bool, workers: int, pin: bool) -> None:
        weights = maker.dataset.weights if weighted else None
        if weights is not None and not weights.sum() > 0:
            raise ConfigError("the list gives every target the weight 0; use weighted=false.")
        self.maker, self.weights, self.workers, self.pin = maker, weights, workers, pin
        self.share: Share | None = None
        self.step = -1
        self._pieces: Iterator[dict[str, Tensor]] = iter(())

    def step_pieces(self, step: int, share: Share) -> list[dict[str, Tensor]]:
        """The collated samples of a step's pieces; consecutive steps are fast, any other works too."""
        if (step, share) != (self.step, self.share):
            sampler = PieceSampler(self.maker.seed, self.weights, len(self.maker.dataset), share, step)
            options: dict[str, Any] = {}
            if self.workers:
                options = {"prefetch_factor": 2, "worker_init_fn": _one_thread}
            loader = DataLoader(
                self.maker, batch_sampler=sampler, num_workers=self.workers, pin_memory=self.pin, **options
            )
            self._pieces = iter(loader)
        self.step, self.share = -1, share
        try:
            pieces = [next(self._pieces) for _ in share.pieces()]
        except RefbfrError as error:
            raise _own_words(error) from None
        self.step = step + 1
        return pieces


def mirror_sample(sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mirror target, degraded picture and references together. The release mirrors the strip of references as one
    picture, which also reverses their order."""
    return {key: (value.flip(-1).flip(0) if key == "references" else value.flip(-1)) for key, value in sample.items()}


def _bytes(image: Tensor) -> Tensor:
    """(1, 3, H, W) in [0, 1] on whole 255ths to (3, H, W) uint8, without loss."""
    return to_uint8(image)[0].permute(2, 0, 1).contiguous()


def _stack(pictures: list[Any], like: Tensor) -> Tensor:
    if not pictures:
        return torch.empty(0, *like.shape[1:], dtype=torch.uint8)
    return torch.cat([_bytes(picture_tensor(picture))[None] for picture in pictures])


def _own_words(error: RefbfrError) -> RefbfrError:
    """An error of a worker process arrives with its traceback as text; its last line is the error itself."""
    kind = type(error)
    return kind(str(error).strip().splitlines()[-1].removeprefix(f"{kind.__module__}.{kind.__name__}: "))


def _one_thread(_: int) -> None:
    """Workers share the cores among themselves; libraries inside them must not each take all."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
