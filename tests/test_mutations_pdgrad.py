"""Would anybody notice? Each known trap of the ADM network and its sampler is sprung, and the comparison must fail.

The comparisons are the very functions of the parity tests. Every case is also run unbroken, so that a comparison which
always fails would be noticed as well. The traps of the gradient surgery have their own file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import parity_pdgrad as parity
import pytest
import torch
from diffusers.models.embeddings import Timesteps
from parity_pdgrad import Arrays
from torch import Tensor, nn

from refbfr_core.diffusion import Schedule, adm_timesteps, learned, norm_ratio, posterior
from refbfr_core.errors import WeightsError
from refbfr_core.models import adm_unet
from refbfr_core.models.adm_unet import ADMUNet
from refbfr_core.weights import convert, convert_strict

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def folder(shared_dir: Path) -> Path:
    return shared_dir / "parity" / "pdgrad"


@pytest.fixture(scope="module")
def recorded(folder: Path) -> Arrays:
    return parity.arrays(folder / "diffusion.npz")


# --- comparisons, each as the parity tests make it --------------------------------------------------------------------


def outputs_updown(folder: Path, recorded: Arrays) -> None:
    parity.compare_output(parity.load(folder, "updown"), parity.arrays(folder / "unet_updown_io.npz"))


def outputs_perlevel(folder: Path, recorded: Arrays) -> None:
    parity.compare_output(parity.load(folder, "perlevel"), parity.arrays(folder / "unet_perlevel_io.npz"))


def gradients_updown(folder: Path, recorded: Arrays) -> None:
    parity.compare_gradient(parity.load(folder, "updown"), parity.arrays(folder / "unet_updown_io.npz"))


def single_steps(folder: Path, recorded: Arrays) -> None:
    parity.compare_single_steps(recorded)


def plain_run(folder: Path, recorded: Arrays) -> None:
    parity.compare_run(parity.load(folder, "updown"), recorded)


def guided_run(folder: Path, recorded: Arrays) -> None:
    parity.compare_guided(parity.load(folder, "updown"), recorded, 1)


def repeated_run(folder: Path, recorded: Arrays) -> None:
    parity.compare_guided(parity.load(folder, "updown"), recorded, 2)


def guided_ending(folder: Path, recorded: Arrays) -> None:
    parity.compare_guided_ending(parity.load(folder, "updown"), recorded)


def norm_ratios(folder: Path, recorded: Arrays) -> None:
    parity.compare_norm_ratio(recorded)


# --- traps of the network ---------------------------------------------------------------------------------------------


def _after_loading(patch: Patch, change: Callable[[ADMUNet], None]) -> None:
    load = parity.load

    def loaded(folder: Path, layout: str) -> ADMUNet:
        network = load(folder, layout)
        change(network)
        return network

    patch.setattr(parity, "load", loaded)


def middle_without_norm(patch: Patch) -> None:
    """The middle's attention as the library builds it without attn_norm_num_groups."""

    def change(network: ADMUNet) -> None:
        network.mid_block.attentions[0].group_norm = None

    _after_loading(patch, change)


def norm_epsilon(patch: Patch) -> None:
    """Group norms with 1e-6, the library's value in other networks."""

    def change(network: ADMUNet) -> None:
        for module in network.modules():
            if isinstance(module, nn.GroupNorm):
                module.eps = 1e-6

    _after_loading(patch, change)


def sine_first(patch: Patch) -> None:
    """The timestep's sinusoid as [sin, cos], the library's default."""

    def change(network: ADMUNet) -> None:
        network.time_proj = Timesteps(32, flip_sin_to_cos=False, downscale_freq_shift=0)

    _after_loading(patch, change)


def plain_thirds(patch: Patch) -> None:
    """Query, key and value as three blocks of rows instead of (head, query/key/value, channel)."""
    function = convert.convert_adm_unet
    patch.setattr(convert, "convert_adm_unet", lambda *a, **k: function(*a, **k, legacy_qkv=False))


def keys_and_queries_swapped(patch: Patch) -> None:
    """The rows of the keys taken for queries, and the other way round."""
    apply = convert_strict.Move.apply

    def applied(self: convert_strict.Move, tensor: Tensor) -> dict[str, Tensor]:
        parts = apply(self, tensor)
        if len(parts) == 1:
            return parts
        query, key, value = self.targets
        return {query: parts[key], key: parts[query], value: parts[value]}

    patch.setattr(convert_strict.Move, "apply", applied)


# --- traps of the sampler ---------------------------------------------------------------------------------------------

Variance = Callable[..., Tensor]


def _variance(patch: Patch, change: Callable[[Variance], Variance]) -> None:
    patch.setattr(learned, "learned_range_variance", change(learned.learned_range_variance))


def library_variance(patch: Patch) -> None:
    """At the last step a smallest variance of 1e-20, as in diffusers."""

    def change(variance: Variance) -> Variance:
        def wrong(code: Tensor, t: int, t_prev: int | None, schedule: Schedule, **options: int | None) -> Tensor:
            if t_prev is not None:
                return variance(code, t, t_prev, schedule, **options)
            f = (code + 1) / 2
            return torch.exp(f * math.log(posterior(t, None, schedule).beta) + (1 - f) * math.log(1e-20))

        return wrong

    _variance(patch, change)


def last_of_the_full_process(patch: Patch) -> None:
    """At the last step beta tilde of timestep 1, although the run has gone there in a long step."""

    def change(variance: Variance) -> Variance:
        return lambda code, t, t_prev, schedule, **options: variance(code, t, t_prev, schedule)

    _variance(patch, change)


def fraction_flipped(patch: Patch) -> None:
    """-1 for the largest variance and 1 for the smallest."""
    _variance(patch, lambda variance: lambda code, *rest, **options: variance(-code, *rest, **options))


def fraction_unscaled(patch: Patch) -> None:
    """v itself as the fraction instead of (v + 1) / 2."""
    _variance(patch, lambda variance: lambda code, *rest, **options: variance(2 * code - 1, *rest, **options))


def variance_of_single_steps(patch: Patch) -> None:
    """beta of the full process although the steps are long."""

    def change(variance: Variance) -> Variance:
        def wrong(code: Tensor, t: int, t_prev: int | None, schedule: Schedule, **options: int | None) -> Tensor:
            return variance(code, t, t - 1 if t else None, schedule)

        return wrong

    _variance(patch, change)


def _sampler(patch: Patch, **changed: object) -> None:
    function = learned.sample_learned
    patch.setattr(learned, "sample_learned", lambda *a, **options: function(*a, **options | changed))


def no_clamping(patch: Patch) -> None:
    """The estimate of x_0 as eq. 4 has it."""
    _sampler(patch, clip_x0=None)


def respaced_indices(patch: Patch) -> None:
    """The network is told the index among the visited timesteps instead of the original timestep."""
    function = learned.sample_learned

    def wrong(predict: Callable[[Tensor, int], Tensor], x: Tensor, timesteps: list[int], *a: object, **k: object):
        place = {t: i for i, t in enumerate(reversed(timesteps))}
        return function(lambda x_t, t: predict(x_t, place[t]), x, timesteps, *a, **k)

    patch.setattr(learned, "sample_learned", wrong)


def halves_swapped(patch: Patch) -> None:
    """The variance code taken for the noise."""
    split = learned.split_learned
    patch.setattr(learned, "split_learned", lambda output: split(output)[::-1])


def noise_at_the_last_step(patch: Patch) -> None:
    """Algorithm 1 of the paper, read literally."""
    update = learned.ddpm_update

    def wrong(x_t: Tensor, x0: Tensor, t: int, t_prev: int | None, schedule: Schedule, **options: Tensor) -> Tensor:
        drawn = update(x_t, x0, t, t_prev, schedule, **options)
        return drawn if t_prev is not None else drawn + options["variance"].sqrt() * torch.randn_like(x_t)

    patch.setattr(learned, "ddpm_update", wrong)


def shift_left_out(patch: Patch) -> None:
    """The guidance shift is left out of the mean."""
    update = learned.ddpm_update
    patch.setattr(learned, "ddpm_update", lambda *a, **options: update(*a, **options | {"mean_shift": None}))


# --- traps of the repeats ---------------------------------------------------------------------------------------------


def _passes(patch: Patch, rule: Callable[[learned.Repeats, int, int], bool]) -> None:
    def passes(self: learned.Repeats, steps: int) -> list[int]:
        return [self.count if rule(self, i, steps) else 1 for i in reversed(range(steps))]

    patch.setattr(learned.Repeats, "passes", passes)


def inclusive_end(patch: Patch) -> None:
    _passes(patch, lambda repeats, i, steps: repeats.end <= i < repeats.start)


def inclusive_start(patch: Patch) -> None:
    _passes(patch, lambda repeats, i, steps: repeats.end < i <= repeats.start)


def counted_from_the_start(patch: Patch) -> None:
    """The index counts executed steps instead of visited timesteps from the last one."""
    _passes(patch, lambda repeats, i, steps: repeats.end < steps - 1 - i < repeats.start)


def no_repeats(patch: Patch) -> None:
    _passes(patch, lambda repeats, i, steps: False)


def repeats_of_the_same_sample(patch: Patch) -> None:
    """An extra pass draws anew from the sample before the step, not from the one just drawn."""
    update = learned.ddpm_update
    first: dict[int, Tensor] = {}

    def wrong(x_t: Tensor, x0: Tensor, t: int, *rest: object, **options: object) -> Tensor:
        return update(first.setdefault(t, x_t), x0, t, *rest, **options)

    patch.setattr(learned, "ddpm_update", wrong)


# --- traps of norm-ratio scaling --------------------------------------------------------------------------------------


def _factor(patch: Patch, change: Callable[[Tensor, Tensor, Tensor, float, str], Tensor]) -> None:
    patch.setattr(norm_ratio, "norm_ratio_factor", change)


def channels_together(patch: Patch) -> None:
    """One factor for all channels where each has its own."""
    function = norm_ratio.norm_ratio_factor

    def wrong(x: Tensor, sample: Tensor, gradient: Tensor, scale: float, scope: str = "image") -> Tensor:
        right = function(x, sample, gradient, scale, scope)
        return function(x, sample, gradient, scale, scope.removesuffix("-channel")).expand_as(right)

    _factor(patch, wrong)


def mean_norms(patch: Patch) -> None:
    """Mean absolute values instead of Euclidean norms."""
    function = norm_ratio.norm_ratio_factor

    def wrong(x: Tensor, sample: Tensor, gradient: Tensor, scale: float, scope: str = "image") -> Tensor:
        shape = function(x, sample, gradient, scale, scope).shape
        axes = [axis for axis, size in enumerate(shape) if size == 1]
        return scale * (x - sample).abs().mean(axes, keepdim=True) / gradient.abs().mean(axes, keepdim=True)

    _factor(patch, wrong)


Comparison = Callable[[Path, Arrays], None]
CASES: list[tuple[Callable[[Patch], None], Comparison]] = [
    (middle_without_norm, outputs_updown),
    (middle_without_norm, outputs_perlevel),
    (middle_without_norm, gradients_updown),
    (plain_thirds, outputs_perlevel),
    (plain_thirds, gradients_updown),
    (keys_and_queries_swapped, outputs_updown),
    (norm_epsilon, outputs_updown),
    (norm_epsilon, outputs_perlevel),
    (sine_first, outputs_perlevel),
    (sine_first, plain_run),
    (library_variance, single_steps),
    (library_variance, plain_run),
    (library_variance, guided_ending),
    (last_of_the_full_process, plain_run),
    (fraction_flipped, single_steps),
    (fraction_flipped, guided_run),
    (fraction_unscaled, single_steps),
    (variance_of_single_steps, plain_run),
    (no_clamping, single_steps),
    (no_clamping, plain_run),
    (no_clamping, guided_run),
    (respaced_indices, plain_run),
    (halves_swapped, single_steps),
    (halves_swapped, plain_run),
    (noise_at_the_last_step, plain_run),
    (noise_at_the_last_step, single_steps),
    (shift_left_out, guided_run),
    (shift_left_out, guided_ending),
    (inclusive_end, repeated_run),
    (inclusive_start, repeated_run),
    (counted_from_the_start, repeated_run),
    (no_repeats, repeated_run),
    (repeats_of_the_same_sample, repeated_run),
    (channels_together, norm_ratios),
    (mean_norms, norm_ratios),
]


@pytest.mark.parametrize(("trap", "compare"), CASES, ids=lambda each: each.__name__)
def test_a_sprung_trap_is_noticed(trap, compare, folder, recorded, monkeypatch):
    trap(monkeypatch)
    with pytest.raises(AssertionError, match="is off by"):
        compare(folder, recorded)


@pytest.mark.parametrize("compare", {compare: None for _, compare in CASES}, ids=lambda each: each.__name__)
def test_without_a_trap_the_comparison_passes(compare, folder, recorded):
    compare(folder, recorded)


def test_a_network_built_without_the_middle_norm_cannot_be_filled(folder, monkeypatch):
    """The converter itself notices a forgotten attn_norm_num_groups: two tensors of the file have no place."""
    build = adm_unet.UNet2DModel.__init__

    def built(self: nn.Module, *args: object, **options: object) -> None:
        build(self, *args, **options | {"attn_norm_num_groups": None})

    monkeypatch.setattr(adm_unet.UNet2DModel, "__init__", built)
    with pytest.raises((WeightsError, KeyError), match=r"middle_block\.1\.norm|mid_block\.attentions\.0\.group_norm"):
        parity.load(folder, "updown")


def test_rounded_evenly_spaced_timesteps_are_not_the_authors(recorded):
    """278 of the counts 1 ... 1000 differ: their stride is accumulated before it is rounded."""
    for count in (21, 23, 31):
        even = np.linspace(0, 999, count).round().astype(int).tolist()
        assert even != recorded[f"map_{count}"].tolist()
        assert adm_timesteps(1000, count)[::-1] == recorded[f"map_{count}"].tolist()


# --- on every machine -------------------------------------------------------------------------------------------------

CARRIED: Sequence[tuple[Callable[[Patch], None], Callable[[Arrays], None]]] = [
    (library_variance, parity.compare_single_steps),
    (fraction_flipped, parity.compare_single_steps),
    (fraction_unscaled, parity.compare_single_steps),
    (no_clamping, parity.compare_single_steps),
    (halves_swapped, parity.compare_single_steps),
    (channels_together, parity.compare_norm_ratio),
    (mean_norms, parity.compare_norm_ratio),
]


@pytest.mark.parametrize(("trap", "compare"), CARRIED, ids=lambda each: each.__name__)
def test_a_sprung_trap_is_noticed_without_the_shared_folder(trap, compare, monkeypatch):
    carried = parity.arrays(parity.CARRIED)
    compare(carried)
    trap(monkeypatch)
    with pytest.raises(AssertionError, match="is off by"):
        compare(carried)
