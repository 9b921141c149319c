"""Applying a recorded degradation: one picture as an array, or a batch as a tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from refbfr_core.degradation import stages
from refbfr_core.degradation.draws import DegradationRecord, draw, image_seeds
from refbfr_core.degradation.presets import PRESETS
from refbfr_core.degradation.ranges import DegradationRanges
from refbfr_core.errors import ConfigError, unknown_name
from refbfr_core.images import check_images


def run_stages(image: np.ndarray, record: DegradationRecord) -> Iterator[tuple[str, np.ndarray]]:
    """Apply ``record`` to one picture (H, W, 3), RGB in [0, 1], and give (name, picture) after each stage.

    Names, in the papers' order: "blur", "downsample", "noise", "jpeg", "upsample", "output". A stage that did not
    take place hands its picture on. Pictures after "downsample" and up to "jpeg" have the low resolution; those
    before "jpeg" are float64.
    """
    height, width = image.shape[:2]
    current = np.asarray(image, dtype=np.float64)
    if record.sigma_x is not None:
        current = stages.blur(
            current, stages.gaussian_kernel(record.sigma_x, record.sigma_y, record.rotation, record.kernel_size)
        )
    yield "blur", current
    if record.scale is not None:
        current = stages.resize(
            current, *stages.low_resolution_size(height, width, record.scale), record.down_interpolation
        )
    yield "downsample", current
    if record.noise == "gaussian":
        current = stages.add_noise(
            current, stages.gaussian_noise(*current.shape[:2], record.noise_sigma, record.noise_seed)
        )
    elif record.noise == "poisson":
        current = stages.add_noise(current, stages.poisson_noise(current, record.noise_sigma, record.noise_seed))
    yield "noise", current
    if record.jpeg_quality is not None:
        current = stages.jpeg(current, record.jpeg_quality)
    yield "jpeg", current
    # The release is float64 up to the coder and float32 after it. It cannot leave the coder out (it stops with an error
    # then); here the cast alone takes its place.
    current = current.astype(np.float32)
    if current.shape[:2] != (height, width):
        current = stages.resize(current, height, width, record.up_interpolation)
    yield "upsample", current
    yield "output", stages.round_to_grey_levels(current)


def apply_record(image: np.ndarray, record: DegradationRecord) -> np.ndarray:
    """Degrade one picture (H, W, 3), RGB in [0, 1], as ``record`` says; float32 (H, W, 3) of whole 255ths.

    The plain-array door for data loaders. It trusts its input; :class:`Degradation` checks.
    """
    return dict(run_stages(image, record))["output"]


class Degradation:
    """A degradation one can call: draws parameters for every picture, applies them, and returns what was drawn.

    >>> lq, records = Degradation.preset("toy-refldm-severe")(images, seed=0)
    >>> print(records[0].describe())

    Attributes:
        ranges: what is drawn from.
    """

    def __init__(self, ranges: DegradationRanges) -> None:
        self.ranges = ranges

    @classmethod
    def preset(cls, name: str) -> Degradation:
        """The named preset of :data:`PRESETS`.

        Raises:
            UnknownNameError: no such preset; the message gives the nearest name.
        """
        if name not in PRESETS:
            raise unknown_name("degradation preset", name, PRESETS)
        return cls(PRESETS[name])

    def __repr__(self) -> str:
        return f"Degradation({self.ranges.name!r})"

    def describe(self) -> str:
        """The ranges in plain words, with their source."""
        return self.ranges.describe()

    def draw(self, count: int, seed: int = 0, seeds: Sequence[int] | None = None) -> list[DegradationRecord]:
        """Draw ``count`` records without touching a picture.  ``seeds`` as in :meth:`__call__`."""
        if seeds is None:
            seeds = image_seeds(seed, count)
        if len(seeds) != count:
            raise ConfigError(f"seeds must hold one integer for each picture: got {len(seeds)} for {count}")
        return [draw(self.ranges, one) for one in seeds]

    def __call__(
        self, images: torch.Tensor, seed: int = 0, *, seeds: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, list[DegradationRecord]]:
        """Degrade a batch.

        Args:
            images: (B, 3, H, W) float32 RGB in [0, 1], any size, any device.
            seed: one integer for the batch; picture i gets its own seed from (seed, i), see :func:`image_seeds`.
            seeds: one integer for each picture instead. What happens to a picture depends on its own seed only,
                never on the batch.

        Returns:
            the degraded pictures, same shape and device, float32 in [0, 1] on whole 255ths, and one record for each
            picture.

        Raises:
            ImageContractError: the pictures break the image contract.
            ConfigError: seeds that are negative, not integers, or of the wrong number.
        """
        check_images(images)
        records = self.draw(len(images), seed, seeds)
        return replay(images, records), records

    def replay(self, images: torch.Tensor, records: Sequence[DegradationRecord] | DegradationRecord) -> torch.Tensor:
        """Apply stored records again; the same as the function :func:`replay`, since a record knows all it needs."""
        return replay(images, records)


def replay(images: torch.Tensor, records: Sequence[DegradationRecord] | DegradationRecord) -> torch.Tensor:
    """Apply stored records again: the same pictures and records give the same pictures, bit for bit.

    Args:
        images: (B, 3, H, W) float32 RGB in [0, 1].
        records: one for each picture, or a single record for all of them (its noise is then the same in all).

    Returns:
        (B, 3, H, W) float32 in [0, 1], on the device of ``images``.
    """
    check_images(images)
    if isinstance(records, DegradationRecord):
        records = [records] * len(images)
    if len(records) != len(images):
        raise ConfigError(
            f"replay needs one record for each picture: got {len(records)} records for {len(images)} pictures"
        )
    arrays = images.detach().permute(0, 2, 3, 1).cpu().numpy()
    degraded = np.stack([apply_record(array, record) for array, record in zip(arrays, records, strict=True)])
    return torch.from_numpy(degraded).permute(0, 3, 1, 2).contiguous().to(images.device)


def stage_pictures(image: torch.Tensor, record: DegradationRecord) -> dict[str, torch.Tensor]:
    """The picture after every stage, for looking at: name -> (1, 3, h, w) float32 in [0, 1].

    Args:
        image: (1, 3, H, W).
        record: what to apply. Names and order as in :func:`run_stages`, with "input" first.  Values are clipped for
            display only.
    """
    check_images(image)
    if len(image) != 1:
        raise ConfigError(f"stage_pictures looks at one picture, got a batch of {len(image)}; pass images[i:i+1]")
    array = image[0].detach().permute(1, 2, 0).cpu().numpy()
    pictures = {"input": image}
    for name, stage in run_stages(array, record):
        clipped = np.clip(stage, 0.0, 1.0).astype(np.float32)
        pictures[name] = torch.from_numpy(clipped).permute(2, 0, 1).unsqueeze(0).contiguous()
    return pictures
