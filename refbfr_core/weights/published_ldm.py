"""What the two files of ReF-LDM's release hold, checked name by name, and the networks made of them.

| in `refldm.ckpt` | what | here |
|---|---|---|
| `model_ema.` | averaged weights of the denoiser, dots taken out of the names | what is used |
| `model.diffusion_model.` | the denoiser where its training stopped | used, with a warning, if there is no average |
| `first_stage_model.`, `cond_stage_model.*_image.` | the VQGAN, three times | must be equal, also to `vqgan.ckpt` |
| twelve names without a prefix | the noise schedule | must be the paper's |
| `perceptual_loss.` | the frozen face network of the identity loss | left out |

`vqgan.ckpt` holds the VQGAN alone, without a prefix, and parts of its training under `loss.`, which are left out.
The denoiser must be whole and nothing may be there that is not in this table; the VQGAN's copies and the schedule may
be absent, because the release's own script does not need them, but not in part.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from refbfr_core.diffusion import Schedule, make_schedule, refldm_schedule
from refbfr_core.errors import WeightsError
from refbfr_core.weights.convert_ldm import convert_ldm_unet, convert_ldm_vq, ldm_unet_shapes, ldm_vq_shapes
from refbfr_core.weights.convert_strict import first_few, misfit
from refbfr_core.weights.published_files import tensors_digest

LIVE, AVERAGE, FIRST_STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
CONDITIONS = ("cond_stage_model.lq_image.", "cond_stage_model.ref_image.")
COUNTERS = ("decay", "num_updates")
LEFT_OUT = MappingProxyType({"refldm.ckpt": "perceptual_loss.", "vqgan.ckpt": "loss."})
# Float32 buffers of a float64 computation differ by 6e-8; another schedule differs in the second digit.
_SCHEDULE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class ReleasedLayout:
    """The authors' keywords that decide all names and shapes: of the U-Net, of the VQGAN, and of its codebook.

    `file` with the denoiser and `owner` are for messages; `schedule` names the noise schedule that it must hold.
    """

    unet: Mapping[str, Any]
    vq: Mapping[str, Any]
    n_embed: int
    embed_dim: int
    file: str = "refldm.ckpt"
    owner: str = "ReF-LDM"
    schedule: str = "refldm"

    def unet_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the denoiser, without prefix."""
        return ldm_unet_shapes(self.unet)

    def vq_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the VQGAN, without prefix."""
        return ldm_vq_shapes(self.vq, self.n_embed, self.embed_dim)


REFLDM_LAYOUT = ReleasedLayout(
    unet=MappingProxyType(
        {
            "image_size": 64,
            "in_channels": 16,
            "out_channels": 8,
            "model_channels": 160,
            "channel_mult": (1, 2, 2, 4),
            "attention_resolutions": (2, 4, 8),
            "num_res_blocks": 2,
            "num_head_channels": 32,
        }
    ),
    vq=MappingProxyType(
        {
            "resolution": 512,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 128,
            "ch_mult": (1, 1, 2, 4),
            "num_res_blocks": 2,
            "z_channels": 8,
        }
    ),
    n_embed=8192,
    embed_dim=8,
)
"""The release: 117,759,368 parameters in the denoiser, 57,183,515 in the VQGAN."""


@dataclass(frozen=True)
class Converted:
    """A network made from a released file, and what a card should say about the file.

    averaged: whether the weights are the exponential moving average; None for the VQGAN, which has none.
    first_stage: `tensors_digest` of the VQGAN in the file, or None; files that belong together agree in it.
    how: what was done to the file.
    """

    network: nn.Module
    averaged: bool | None
    first_stage: str | None
    remarks: tuple[str, ...]
    how: str = "other names and layout, the same float32 values"


def average_name(name: str) -> str:
    """The name of a parameter's average in `refldm.ckpt`: `model.diffusion_model.out.2.bias` and `out.2.bias` both
    give `model_ema.diffusion_modelout2bias`."""
    return AVERAGE + "diffusion_model" + name.removeprefix(LIVE).replace(".", "")


def schedule_buffers(schedule: Schedule | None = None) -> dict[str, Tensor]:
    """The twelve schedule buffers of the release, (T,) float64, from `schedule` (default: ReF-LDM's)."""
    s = refldm_schedule() if schedule is None else schedule
    noise, previous = 1.0 - s.alphas_cumprod, s.alphas_cumprod_prev
    variance = s.betas * (1.0 - previous) / noise
    return {
        "betas": s.betas,
        "alphas_cumprod": s.alphas_cumprod,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": s.sqrt_alphas_cumprod,
        "sqrt_one_minus_alphas_cumprod": s.sqrt_one_minus_alphas_cumprod,
        "log_one_minus_alphas_cumprod": noise.log(),
        "sqrt_recip_alphas_cumprod": s.sqrt_recip_alphas_cumprod,
        "sqrt_recipm1_alphas_cumprod": s.sqrt_recipm1_alphas_cumprod,
        "posterior_variance": variance,
        # The variance of the last step is 0; the authors take the logarithm of at least 1e-20.
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": s.betas * previous.sqrt() / noise,
        "posterior_mean_coef2": (1.0 - previous) * s.alphas.sqrt() / noise,
    }


def read_refldm(state: Mapping[str, Tensor], layout: ReleasedLayout = REFLDM_LAYOUT) -> Converted:
    """The denoiser of `refldm.ckpt`, float32 in eval mode, from averaged weights where there are some.

    Raises
    ------
    WeightsError : a name too many, a part that is not whole, wrong shapes, values that are not finite, copies of the
        VQGAN that differ, or another noise schedule; the message names the first few.
    """
    parts, rest = _parts(state, (LIVE, AVERAGE, FIRST_STAGE, *CONDITIONS, LEFT_OUT["refldm.ckpt"]))
    buffers = schedule_buffers(make_schedule(layout.schedule))
    if unexpected := [name for name in rest if name not in buffers]:
        raise WeightsError(
            f"{layout.file} holds {len(unexpected)} names that no released file has ({first_few(unexpected)}). "
            "Take the file from its owners' page unchanged."
        )
    weights, averaged, remark = _denoiser(parts, layout)
    remarks = [remark]
    if left_out := parts.get(LEFT_OUT["refldm.ckpt"]):
        remarks.append(f"{len(left_out)} tensors of the loss network ({LEFT_OUT['refldm.ckpt']}) were left out")
    if rest:
        _check_schedule(rest, buffers, layout)
    else:
        remarks.append("it holds no noise schedule; the paper's is used")
    digest = None
    if stages := [prefix for prefix in (FIRST_STAGE, *CONDITIONS) if prefix in parts]:
        digest = _check_first_stages(parts, stages, layout)
    else:
        remarks.append("it holds no copy of the VQGAN to compare with vqgan.ckpt")
    network = convert_ldm_unet(weights, layout.unet)
    return Converted(network, averaged, digest, tuple(remarks))


def read_vqgan(state: Mapping[str, Tensor], layout: ReleasedLayout = REFLDM_LAYOUT) -> Converted:
    """The first stage of `vqgan.ckpt`, float32 in eval mode. Raises `WeightsError` as `read_refldm`."""
    left_out = LEFT_OUT["vqgan.ckpt"]
    stage = {name: tensor for name, tensor in state.items() if not name.startswith(left_out)}
    _require_whole(stage, layout.vq_shapes(), "vqgan.ckpt", layout)
    _require_finite(stage, "")
    dropped = len(state) - len(stage)
    remarks = (f"{dropped} tensors of its training ({left_out}) were left out",) if dropped else ()
    network = convert_ldm_vq(stage, layout.vq, layout.n_embed, layout.embed_dim)
    return Converted(network, None, _digest(stage), remarks)


def looks_like_refldm(names: Mapping[str, Any]) -> bool:
    """Whether a state dictionary is that of `refldm.ckpt`, damaged or not."""
    return any(name.startswith((LIVE, AVERAGE)) for name in names)


def looks_like_vqgan(names: Mapping[str, Any]) -> bool:
    """Whether a state dictionary is that of `vqgan.ckpt`, damaged or not."""
    return any(name.startswith(("encoder.", "decoder.", "quantize.")) for name in names)


def _parts(
    state: Mapping[str, Tensor], prefixes: tuple[str, ...]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The state sorted by prefix (prefixes taken off, absent ones left out), and what has none of them."""
    parts: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for name, tensor in state.items():
        prefix = next((each for each in prefixes if name.startswith(each)), None)
        if prefix is None:
            rest[name] = tensor
        else:
            parts.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    return parts, rest


def _denoiser(parts: Mapping[str, Mapping[str, Tensor]], layout: ReleasedLayout) -> tuple[dict[str, Tensor], bool, str]:
    """The denoiser's tensors by the authors' names, whether they are averages, and a remark that says so."""
    shapes = layout.unet_shapes()
    if LIVE in parts:
        _require_whole(parts[LIVE], shapes, LIVE, layout)
    if AVERAGE not in parts:
        if LIVE not in parts:
            raise WeightsError(f"{layout.file} holds no denoiser (neither model_ema. nor model.diffusion_model.).")
        warnings.warn(
            f"{layout.file} holds no averaged weights (model_ema.); the weights at the end of the training are used "
            "instead (model.diffusion_model.). The authors sample with the average: expect other pictures than theirs.",
            UserWarning,
            stacklevel=3,
        )
        _require_finite(parts[LIVE], LIVE)
        return dict(parts[LIVE]), False, "it holds no average; the weights are those where the training stopped"
    dotless = {average_name(name).removeprefix(AVERAGE): name for name in shapes}
    average = {name: tensor for name, tensor in parts[AVERAGE].items() if name not in COUNTERS}
    _require_whole(average, {short: shapes[name] for short, name in dotless.items()}, AVERAGE, layout)
    _require_finite(average, AVERAGE)
    counted = [
        f"{name} {parts[AVERAGE][name].item():g}"
        for name in COUNTERS
        if name in parts[AVERAGE] and not parts[AVERAGE][name].is_meta
    ]
    remark = "exponential moving average" + (f" ({', '.join(counted)})" if counted else "")
    return {dotless[short]: tensor for short, tensor in average.items()}, True, remark


def _check_schedule(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], layout: ReleasedLayout) -> None:
    """Requires the schedule in the file to be whole and the paper's."""
    _require_whole(found, {name: tuple(buffer.shape) for name, buffer in expected.items()}, "the schedule", layout)
    for name, buffer in expected.items():
        values = found[name]
        if not values.is_meta and not torch.allclose(values.double(), buffer, rtol=_SCHEDULE_TOLERANCE, atol=1e-9):
            worst = int((values.double() - buffer).abs().argmax())
            raise WeightsError(
                f"the noise schedule in {layout.file} is not {layout.owner}'s: {name}[{worst}] is "
                f"{float(values[worst]):.6g}, not {float(buffer[worst]):.6g}. Restorations would be wrong; take the "
                "owners' file."
            )


def _check_first_stages(
    parts: Mapping[str, Mapping[str, Tensor]], present: list[str], layout: ReleasedLayout
) -> str | None:
    """Requires the copies of the VQGAN that are present to be whole and equal; returns their digest."""
    first = parts[present[0]]
    for prefix in present:
        _require_whole(parts[prefix], layout.vq_shapes(), prefix, layout)
    _require_finite(first, present[0])
    for prefix in present[1:]:
        differing = [name for name, tensor in parts[prefix].items() if not _equal(tensor, first[name])]
        if differing:
            raise WeightsError(
                f"{layout.file} holds two different VQGANs: {len(differing)} tensors under {prefix} differ from "
                f"{present[0]} ({first_few(differing)}). The release has one; take the owners' file."
            )
    return _digest(first)


def _require_whole(
    found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], what: str, layout: ReleasedLayout
) -> None:
    if problem := misfit(found, expected):
        raise WeightsError(
            f"{what} is not as in {layout.owner}'s release: of {len(expected)} tensors, {problem}. Nothing was loaded; "
            "take the owners' file unchanged."
        )


def _require_finite(tensors: Mapping[str, Tensor], prefix: str) -> None:
    broken = [prefix + name for name, x in tensors.items() if not x.is_meta and not bool(torch.isfinite(x).all())]
    if broken:
        raise WeightsError(
            f"{len(broken)} tensors hold NaN or infinity ({first_few(broken)}): the file is damaged. Download it again."
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    # The release's copies are one object, saved once: comparing them would read the file for nothing.
    return a.is_meta or a.data_ptr() == b.data_ptr() or torch.equal(a, b)


def _digest(tensors: Mapping[str, Tensor]) -> str | None:
    """`tensors_digest`, or None on the meta device, where tensors have shapes but no values."""
    return None if any(tensor.is_meta for tensor in tensors.values()) else tensors_digest(tensors)
