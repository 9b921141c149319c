"""Would anybody notice? Each known trap of LD-BFR's networks is sprung, and the comparison must fail.

A trap is a change of one place in the source of a function. The comparisons are those of the tests of the networks;
every one also runs unbroken, so that a comparison which always fails would be noticed as well.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import formulas_ldbfr as formulas
import pytest

from refbfr_core.models import hq_injection, injected_unet, vq_restorer
from refbfr_core.models.dual_cross_attention import DualCrossAttention
from refbfr_core.models.hq_injection import ConcatInjector, DecoderInjector, EncoderInjector

parallel, sequential = formulas.compare_dcam, partial(formulas.compare_dcam, "sequential")
printed, released = formulas.compare_d_hqi, partial(formulas.compare_d_hqi, True)
network, look_up = formulas.compare_network, formulas.compare_look_up

COMPARISONS = {
    "parallel": parallel,
    "sequential": sequential,
    "unscaled": partial(formulas.compare_dcam, channel_scale=False),
    "concat": formulas.compare_concatenation,
    "e-hqi": formulas.compare_e_hqi,
    "printed": printed,
    "released": released,
    "rearranging": formulas.compare_rearranging,
    "network": network,
    "look_up": look_up,
    "layout": formulas.compare_layout,
}

_BEFORE = """            x = attend(block, index, resnet(x, embedding), "down", 2**level)
            skips.append(x)"""
_SKIP_FIRST = """            x = attend(block, index, resnet(x, embedding), "none", 2**level)
            skips.append(x)
            injector = injection.at("down", 2**level, index)
            x = x if injector is None else injector(x, given[2**level])"""
_ATTENTION_FIRST = """        x = block.attentions[index](x)
        injector = injection.at(half, factor, index)
        return x if injector is None else injector(x, given[factor])"""
_INJECTION_FIRST = """        injector = injection.at(half, factor, index)
        return block.attentions[index](x if injector is None else injector(x, given[factor]))"""

TRAPS: list[tuple[str, Any, str, str, str, str]] = [
    ("query and key swapped", DualCrossAttention, "spatial_attention",
     "(self.to_q, degraded), (self.to_k, codes)", "(self.to_k, codes), (self.to_q, degraded)", "parallel"),
    ("values of the degraded", DualCrossAttention, "spatial_attention",
     "(self.to_v, codes)", "(self.to_v, degraded)", "parallel"),
    ("no scale by the head", DualCrossAttention, "spatial_attention",
     "/ math.sqrt(query.shape[-1])", "", "parallel"),
    ("heads not put together", DualCrossAttention, "spatial_attention",
     "attended.transpose(-1, -2).reshape(shape)", "attended.reshape(shape)", "parallel"),
    ("columns sum to one", DualCrossAttention, "channel_attention", ".softmax(-1)", ".softmax(-2)", "parallel"),
    ("channel means of the degraded", DualCrossAttention, "channel_attention",
     "@ codes.flatten(2)", "@ degraded.flatten(2)", "parallel"),
    ("scale by the channels", DualCrossAttention, "channel_attention",
     "math.sqrt(rows.shape[-1])", "math.sqrt(rows.shape[1])", "parallel"),
    ("scale whatever the flag", DualCrossAttention, "channel_attention",
     " if self.config.channel_scale else 1.0", "", "unscaled"),
    ("sequential without first residual", DualCrossAttention, "look",
     "keys = codes + channel", "keys = channel", "sequential"),
    ("sequential without second residual", DualCrossAttention, "look",
     "fused = codes + spatial if", "fused = spatial if", "sequential"),
    ("sequential residual on the enriched codes", DualCrossAttention, "look",
     "fused = codes + spatial if", "fused = keys + spatial if", "sequential"),
    ("parallel fed with the enriched codes", DualCrossAttention, "look",
     'if self.config.mode == "sequential":', "if True:", "parallel"),
    ("E-HQI without residual", EncoderInjector, "forward", "plus(feature, self", "plus(0 * feature, self", "e-hqi"),
    ("E-HQI with the condition first", EncoderInjector, "forward",
     "torch.cat([feature, condition], dim=1)", "torch.cat([condition, feature], dim=1)", "e-hqi"),
    ("E-HQI without its inner norm", EncoderInjector, "forward",
     "self.norm_in(self.conv_in(torch.cat([feature, condition], dim=1)))",
     "self.conv_in(torch.cat([feature, condition], dim=1))", "e-hqi"),
    ("E-HQI without the norm of SA", EncoderInjector, "forward", "self.norm(mixed)", "mixed", "e-hqi"),
    ("E-HQI with key and value swapped", EncoderInjector, "forward", "query, key, value =", "query, value, key =",
     "e-hqi"),
    ("D-HQI without residual", DecoderInjector, "forward", "plus(feature, added", "plus(0 * feature, added", "printed"),
    ("D-HQI scaled by s", DecoderInjector, "forward", "(1 + scale) *", "scale *", "printed"),
    ("D-HQI scaled by s, released", DecoderInjector, "forward", "(1 + scale) *", "scale *", "released"),
    ("D-HQI with scale and shift swapped", DecoderInjector, "forward", "scale, shift =", "shift, scale =", "printed"),
    ("D-HQI without SiLU", DecoderInjector, "forward", "F.silu(said)", "said", "printed"),
    ("D-HQI with key and value swapped", DecoderInjector, "forward",
     "self.to_k(given), self.to_v(given)", "self.to_v(given), self.to_k(given)", "printed"),
    ("released D-HQI without the inner residual", DecoderInjector, "forward",
     "tokens + answer if", "answer if", "released"),
    ("printed D-HQI with the inner residual", DecoderInjector, "forward",
     "tokens + answer if self.released else answer", "tokens + answer", "printed"),
    ("released MLP fed with the condition first", DecoderInjector, "forward",
     "torch.cat([tokens, given], dim=-1)", "torch.cat([given, tokens], dim=-1)", "released"),
    ("concatenation without residual", ConcatInjector, "forward",
     "plus(feature, self", "plus(0 * feature, self", "concat"),
    ("layout of the sum", hq_injection, "plus", "feature.clone().add_(change)", "feature + change", "layout"),
    ("P_s as a plain reshape down", hq_injection, "resample_condition",
     "F.pixel_unshuffle(condition, down)", "condition.reshape(len(condition), -1, side, side)", "rearranging"),
    ("P_s as a plain reshape up", hq_injection, "resample_condition",
     "F.pixel_shuffle(condition, up)", "condition.reshape(len(condition), -1, side, side)", "rearranging"),
    ("skip before injection", injected_unet, "denoise_injected", _BEFORE, _SKIP_FIRST, "network"),
    ("injection before attention", injected_unet, "denoise_injected", _ATTENTION_FIRST, _INJECTION_FIRST, "network"),
    ("one injector for the whole level", injected_unet, "denoise_injected",
     "injection.at(half, factor, index)", "injection.at(half, factor, 0)", "network"),
    ("no injection going up", injected_unet, "denoise_injected", '"up", 2**level', '"none", 2**level', "network"),
    ("no injection going down", injected_unet, "denoise_injected", '"down", 2**level', '"none", 2**level', "network"),
    ("skip without gradient of its own", vq_restorer, "look_up",
     "features + (chosen - features).detach()", "chosen + 0 * features", "look_up"),
    ("farthest code", vq_restorer, "look_up", ".argmin(1)", ".argmax(1)", "look_up"),
    ("places taken in another order", vq_restorer, "look_up",
     "features.detach().permute(0, 2, 3, 1)", "features.detach().permute(0, 3, 2, 1)", "look_up"),
]  # fmt: skip


def spring(patch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str) -> None:
    """Puts a function with one place of its source changed where the right one was."""
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} has the place to change {source.count(old)} times; adapt the trap."
    made: dict[str, Any] = {}
    exec(compile(source.replace(old, new), f"<{name} changed>", "exec"), dict(vars(inspect.getmodule(function))), made)  # noqa: S102
    patch.setattr(owner, name, made[name])


@pytest.mark.parametrize("name", COMPARISONS)
def test_unbroken(name: str) -> None:
    COMPARISONS[name]()


@pytest.mark.parametrize(
    ("owner", "name", "old", "new", "comparison"), [trap[1:] for trap in TRAPS], ids=[trap[0] for trap in TRAPS]
)
def test_sprung(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str, comparison: str) -> None:
    spring(monkeypatch, owner, name, old, new)
    compare: Callable[[], None] = COMPARISONS[comparison]
    with pytest.raises(AssertionError):
        compare()
