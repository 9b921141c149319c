"""CacheKV: what it must equal, what must not matter, what must, and that nothing is left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from refbfr_core.errors import CacheError
from refbfr_core.models import ReferenceCache, denoise
from refbfr_core.models.cachekv import attention_layers

C, SIDE = 4, 8


def make_unet(seed: int = 0) -> UNet2DModel:
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=SIDE,
        in_channels=2 * C,
        out_channels=C,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            # Sharper attention than at initialisation, so that which keys take part is visible in the output.
            parameter.mul_(3.0 if "to_q" in name or "to_k" in name else 1.0)
    return unet.eval()


@pytest.fixture
def unet() -> UNet2DModel:
    return make_unet()


@pytest.fixture
def sample() -> Tensor:
    return torch.randn(2, 2 * C, SIDE, SIDE)


@pytest.fixture
def references() -> Tensor:
    return torch.randn(2, 3, C, SIDE, SIDE)


TIMESTEPS = torch.tensor([17, 640])


class JointProcessor:
    """Attention over main and reference tokens at once, written out: own queries see all, references themselves."""

    def __init__(self, people: int, references: int) -> None:
        self.people, self.references = people, references

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        rows, channels, height, width = hidden_states.shape
        tokens = height * width
        normed = attn.group_norm(hidden_states)
        flat = normed.view(self.people, 1 + self.references, channels, tokens).transpose(2, 3).flatten(1, 2)
        query, key, value = (
            layer(flat).view(self.people, -1, attn.heads, channels // attn.heads).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        scores = query @ key.transpose(2, 3) / (channels // attn.heads) ** 0.5
        belongs_to = torch.arange(1 + self.references).repeat_interleave(tokens)
        allowed = (belongs_to[:, None] == belongs_to[None]) | (belongs_to[:, None] == 0)
        mixed = scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ value
        mixed = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        mixed = mixed.view(self.people, 1 + self.references, tokens, channels).transpose(2, 3)
        return mixed.reshape(rows, channels, height, width) + hidden_states


def joint_pass(unet: UNet2DModel, sample: Tensor, references: Tensor) -> Tensor:
    """One pass over [main, references...] of every person; the main rows' output. Leaves its processors in `unet`."""
    people, count = references.shape[:2]
    blank = torch.zeros_like(references)
    rows = torch.cat([sample[:, None], torch.cat([references, blank], dim=2)], dim=1).flatten(0, 1)
    timesteps = torch.cat([TIMESTEPS[:, None], torch.zeros(people, count, dtype=torch.long)], dim=1).flatten()
    for layer in attention_layers(unet).values():
        layer.set_processor(JointProcessor(people, count))
    out = unet(rows, timesteps).sample
    return out.view(people, 1 + count, *out.shape[1:])[:, 0]


def cached_pass(unet: UNet2DModel, sample: Tensor, references: Tensor, **build) -> Tensor:
    return denoise(unet, sample, TIMESTEPS, ReferenceCache.build(unet, references, **build))


def processors_of(unet: UNet2DModel) -> dict[str, object]:
    return {name: layer.processor for name, layer in attention_layers(unet).items()}


def close(a: Tensor, b: Tensor, atol: float = 1e-5) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=atol)


# --- what it equals ---------------------------------------------------------------------------------------------------


def test_equals_one_joint_pass_where_references_see_only_themselves(sample, references):
    joint, cached = (make(make_unet(), sample, references) for make in (joint_pass, cached_pass))
    assert close(joint, cached)
    assert not close(denoise(make_unet(), sample, TIMESTEPS), cached, atol=1e-2)


def test_gradients_equal_those_of_the_joint_pass(sample, references):
    gradients = []
    for make in (joint_pass, cached_pass):
        unet, latents = make_unet(), references.clone().requires_grad_()
        make(unet, sample, latents).square().mean().backward()
        gradients.append({name: p.grad for name, p in unet.named_parameters()} | {"references": latents.grad})
    for name, expected in gradients[0].items():
        # The gradient of a key bias is zero but for rounding: shifting all keys alike leaves a softmax as it is.
        assert close(gradients[1][name], expected, atol=1e-4 * float(expected.abs().max()) + 1e-8), name
    assert float(gradients[1]["references"].abs().max()) > 0


def test_order_does_not_matter_but_multiplicity_does(unet, sample, references):
    out = cached_pass(unet, sample, references)
    assert close(cached_pass(unet, sample, references[:, [2, 0, 1]]), out)
    assert not close(cached_pass(unet, sample, references[:, [0, 1, 2, 2]]), out, atol=1e-4)


def test_people_do_not_see_each_others_references(unet, sample, references):
    out = cached_pass(unet, sample, references)
    other = references.clone()
    other[1] = torch.randn_like(other[1])
    changed = cached_pass(unet, sample, other)
    assert close(changed[0], out[0])
    assert not close(changed[1], out[1], atol=1e-3)


# --- masks ------------------------------------------------------------------------------------------------------------


def test_masked_references_change_nothing_whatever_they_hold(unet, sample, references):
    mask = torch.tensor([[True, False, True], [False, True, True]])
    poisoned = references.clone()
    poisoned[~mask] = float("nan")
    kept = torch.stack([references[0, [0, 2]], references[1, [1, 2]]])
    assert close(cached_pass(unet, sample, poisoned, mask=mask), cached_pass(unet, sample, kept))


def test_a_fully_masked_person_equals_no_references(unet, sample, references):
    alone = denoise(unet, sample, TIMESTEPS)
    mask = torch.tensor([[False] * 3, [True] * 3])
    out = cached_pass(unet, sample, references, mask=mask)
    assert close(out[0], alone[0])
    assert close(out[1], cached_pass(unet, sample, references)[1])
    assert close(cached_pass(unet, sample, references, mask=torch.zeros_like(mask)), alone)


def test_gradients_under_a_mask(unet, sample, references):
    latents = references.clone().requires_grad_()
    mask = torch.tensor([[True, False, True], [True, True, True]])
    cached_pass(unet, sample, latents, mask=mask).square().mean().backward()
    reached = latents.grad.flatten(2).abs().amax(-1) > 0
    assert torch.equal(reached, mask)


# --- sharing, selecting, chunks ---------------------------------------------------------------------------------------


def test_one_cache_serves_several_rows_of_a_person(unet, references):
    rows, timesteps = torch.randn(6, 2 * C, SIDE, SIDE), torch.randint(0, 1000, (6,))
    mask = torch.tensor([[True, False, True], [True, True, True]])
    shared = ReferenceCache.build(unet, references, mask).repeat_interleave(3)
    assert shared.batch_size == 6
    copied = ReferenceCache.build(unet, references.repeat_interleave(3, 0), mask.repeat_interleave(3, 0))
    assert close(denoise(unet, rows, timesteps, shared), denoise(unet, rows, timesteps, copied))
    assert 3 * shared.nbytes == copied.nbytes


def test_gradients_of_a_shared_cache_are_summed(unet, references):
    rows = torch.randn(4, 2 * C, SIDE, SIDE)
    latents = [references.clone().requires_grad_() for _ in range(2)]
    shared = ReferenceCache.build(unet, latents[0]).repeat_interleave(2)
    copied = ReferenceCache.build(unet, latents[1].repeat_interleave(2, 0))
    for cache in (shared, copied):
        denoise(unet, rows, 5, cache).square().sum().backward()
    assert close(latents[0].grad, latents[1].grad, atol=1e-4 * float(latents[1].grad.abs().max()))


def test_select_takes_rows(unet, sample, references):
    cache = ReferenceCache.build(unet, references, torch.tensor([[True, False, True], [True, True, True]]))
    both = denoise(unet, sample, TIMESTEPS, cache)
    for rows in (1, slice(1, 2), [1], torch.tensor([1])):
        assert close(denoise(unet, sample[1:], 640, cache.select(rows)), both[1:])
    doubled = cache.repeat_interleave(2).select([3, 0])  # rows 2 and 3 belong to the second person
    assert close(denoise(unet, sample.flip(0), TIMESTEPS.flip(0), doubled), both.flip(0))


def test_chunks_give_the_same_cache(unet, sample, references):
    assert close(cached_pass(unet, sample, references, chunk_size=4), cached_pass(unet, sample, references))


def test_thirty_references_work(unet, sample):
    out = cached_pass(unet, sample, torch.randn(2, 30, C, SIDE, SIDE), chunk_size=16)
    assert torch.isfinite(out).all()


def test_the_reference_pass_stops_after_its_last_attention(unet, references):
    calls = []
    unet.conv_out.register_forward_hook(lambda *_: calls.append(1))
    ReferenceCache.build(unet, references)
    assert not calls


# --- nothing left behind ----------------------------------------------------------------------------------------------


def test_restoring_one_person_leaves_no_trace_for_the_next(unet, sample, references):
    fresh = copy.deepcopy(unet)
    processors, keys = processors_of(unet), list(unet.state_dict())
    cached_pass(unet, sample, references)
    assert processors_of(unet) == processors
    assert list(unet.state_dict()) == keys
    assert torch.equal(denoise(unet, sample, TIMESTEPS), denoise(fresh, sample, TIMESTEPS))


@pytest.mark.parametrize("phase", ["reference", "main"])
def test_processors_come_back_after_an_exception(unet, sample, references, phase):
    processors = processors_of(unet)
    cache = None if phase == "reference" else ReferenceCache.build(unet, references)

    def fail(*_):
        raise KeyboardInterrupt

    hook = unet.mid_block.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        denoise(unet, sample, 3, cache or ReferenceCache.build(unet, references))
    hook.remove()
    assert processors_of(unet) == processors


def test_two_caches_side_by_side(unet, sample, references):
    first, second = (ReferenceCache.build(unet, r) for r in (references, references.flip(0)))
    before = denoise(unet, sample, TIMESTEPS, first)
    denoise(unet, sample, TIMESTEPS, second)
    assert torch.equal(denoise(unet, sample, TIMESTEPS, first), before)


def test_wrapped_networks_are_the_same_network(unet, sample, references):
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    cache = ReferenceCache.build(Wrapper(unet), references)
    assert torch.equal(denoise(Wrapper(unet), sample, 9, cache), denoise(unet, sample, 9, cache))


def test_mixed_precision_must_be_the_same_on_both_sides(unet, sample, references):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = ReferenceCache.build(unet, references)
        mixed = denoise(unet, sample, TIMESTEPS, cache)
    # bf16 on a CPU takes its own path through the attention; a wrong scale there would move the output by 0.1.
    assert close(mixed.float(), cached_pass(unet, sample, references), atol=0.03)
    with pytest.raises(CacheError, match="precision"):
        denoise(unet, sample, TIMESTEPS, cache)


# --- clear errors -----------------------------------------------------------------------------------------------------


def test_an_unfilled_cache_raises(unet, sample):
    cache = ReferenceCache()
    assert not cache.filled
    assert repr(cache) == "ReferenceCache(unfilled)"
    for use in (lambda: denoise(unet, sample, 0, cache), lambda: cache.select(0), lambda: cache.repeat_interleave(2)):
        with pytest.raises(CacheError, match="never filled"):
            use()


@pytest.mark.parametrize(
    ("latents", "said"),
    [
        (torch.zeros(2, 0, C, SIDE, SIDE), "hold no reference"),
        (torch.zeros(0, 2, C, SIDE, SIDE), "hold no reference"),
        (torch.zeros(3, C, SIDE, SIDE), r"needs \[None\]"),
        (torch.zeros(2, 1, 2 * C, SIDE, SIDE), "8 channels"),
        (torch.zeros(2, 1, C, SIDE, SIDE, dtype=torch.float64), "float64"),
        ([torch.zeros(C, SIDE, SIDE)], "list"),
    ],
)
def test_wrong_reference_latents(unet, latents, said):
    with pytest.raises(CacheError, match=said):
        ReferenceCache.build(unet, latents)


@pytest.mark.parametrize("mask", [torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 3)])
def test_wrong_masks(unet, references, mask):
    with pytest.raises(CacheError, match="mask must be bool"):
        ReferenceCache.build(unet, references, mask)


def test_wrong_uses(unet, sample, references):
    cache = ReferenceCache.build(unet, references)
    with pytest.raises(CacheError, match="repeat_interleave"):
        denoise(unet, sample.repeat(2, 1, 1, 1), 0, cache)
    with pytest.raises(CacheError, match="same size"):
        denoise(unet, sample[..., :4, :4], 0, cache)
    with pytest.raises(CacheError, match="another network"):
        denoise(make_unet(1), sample, 0, cache)
    with pytest.raises(CacheError, match="must be a ReferenceCache"):
        denoise(unet, sample, 0, {"k": references})
    with pytest.raises(CacheError, match="k >= 1"):
        cache.repeat_interleave(0)
    with pytest.raises(CacheError, match="no row"):
        cache.select([])
    with pytest.raises(CacheError, match="not all in a cache of 2"):
        cache.select([2])


def test_gradient_checkpointing_is_refused(unet, sample, references):
    cache = ReferenceCache.build(unet, references)
    unet.enable_gradient_checkpointing()
    with pytest.raises(CacheError, match="disable_gradient_checkpointing"):
        denoise(unet, sample, 0, cache)
    with torch.no_grad():
        denoise(unet, sample, 0, cache)


def test_networks_without_attention_are_refused():
    with pytest.raises(CacheError, match="no diffusers Attention"):
        attention_layers(nn.Conv2d(1, 1, 1))


def test_repr_says_what_is_held(unet, references):
    cache = ReferenceCache.build(unet, references, torch.tensor([[True, False, True], [True, True, True]]))
    text = repr(cache.repeat_interleave(4))
    for part in ("2 people x 3 references", "5 of 6 references", "serves 4 consecutive rows", "mid_block.attentions.0"):
        assert part in text
