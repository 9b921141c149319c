"""Ways to compute ReF-LDM's references faster, and that none of them changes what is computed.

Counted references against repeated ones, null references shared by everybody against one pass each, several caches in
one call against one call each, unused references dropped against masked, short types and compilation against plain
float32. Times are measured by benchmarks/refldm_speed.py and benchmarks/refldm_gpu.py, not here.
"""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet2DModel, VQModel
from torch import Tensor

from refbfr_core import load_pipeline
from refbfr_core.diffusion import classifier_free_guidance, refldm_schedule, to_scheduler
from refbfr_core.errors import CacheError, ConfigError, UnknownNameError
from refbfr_core.images import to_uint8
from refbfr_core.models import ReferenceCache, denoise, encode_latents
from refbfr_core.models.cachekv import CacheKVProcessor, SideBySideProcessor
from refbfr_core.pipelines import RefLDMPipeline, encode_references
from refbfr_core.pipelines import refldm as pipeline_module
from refbfr_core.pipelines.rows import as_slice, rows_per_call

C, SIDE, STEPS = 4, 8, 2
ROWS = 2
PATTERN = torch.tensor([[True, False, True], [False, True, False]])


def make_unet(seed: int = 0, out_channels: int = C, sample_size: int = SIDE) -> UNet2DModel:
    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=sample_size,
        in_channels=2 * out_channels,
        out_channels=out_channels,
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


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    return make_unet()


@pytest.fixture
def sample() -> Tensor:
    return torch.randn(ROWS, 2 * C, SIDE, SIDE)


@pytest.fixture
def references() -> Tensor:
    return torch.randn(ROWS, 3, C, SIDE, SIDE)


def call(unet, sample, cache, timestep: int = 500) -> Tensor:
    with torch.no_grad():
        return denoise(unet, sample, timestep, cache)


def assert_close(result: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    """Equal up to `bound` of the largest value."""
    assert result.shape == expected.shape
    assert float((result - expected).abs().max() / expected.abs().max()) <= bound


def grey_levels(a: Tensor, b: Tensor) -> int:
    return int((to_uint8(a).int() - to_uint8(b).int()).abs().max())


def watch_rows(monkeypatch, unet: UNet2DModel) -> list[int]:
    """The number of rows of every later call of the network."""
    rows, forward = [], unet.forward

    def counting(sample, *arguments, **named):
        rows.append(len(sample))
        return forward(sample, *arguments, **named)

    monkeypatch.setattr(unet, "forward", counting)
    return rows


# --- references that count several times ------------------------------------------------------------------------------


def test_a_reference_that_counts_n_times_equals_n_copies(unet, sample, references):
    counts = torch.tensor([[2, 0, 1], [1, 3, 0]])
    repeated = torch.stack([references[0, [0, 0, 2, 2]], references[1, [0, 1, 1, 1]]])
    copies = torch.tensor([[True, True, True, False], [True, True, True, True]])
    expected = call(unet, sample, ReferenceCache.build(unet, repeated, copies))
    assert_close(call(unet, sample, ReferenceCache.build(unet, references, counts)), expected)
    # Without the counts the result is another one: they are not ignored.
    once = call(unet, sample, ReferenceCache.build(unet, references, counts > 0))
    assert float((once - expected).abs().max() / expected.abs().max()) > 1e-3


def test_gradients_through_counted_references(unet, sample, references):
    gradients = []
    for latents, mask in (
        (references[:, [0, 0, 1, 2]], None),
        (references, torch.tensor([[2, 1, 1], [2, 1, 1]])),
    ):
        leaf = references.clone().requires_grad_()
        used = leaf[:, [0, 0, 1, 2]] if latents.shape[1] == 4 else leaf
        denoise(unet, sample, 5, ReferenceCache.build(unet, used, mask)).square().sum().backward()
        gradients.append(leaf.grad)
    unet.zero_grad()
    assert_close(gradients[1], gradients[0], 1e-4)


def test_counts_of_one_are_no_mask_and_a_masked_reference_is_not_run(unet, references, monkeypatch):
    assert ReferenceCache.build(unet, references, torch.ones(ROWS, 3, dtype=torch.long)).mask is None
    rows = watch_rows(monkeypatch, unet)
    ReferenceCache.build(unet, references, torch.tensor([[5, 0, 1], [1, 0, 0]]))
    assert rows == [3]


@pytest.mark.parametrize("mask", [torch.tensor([[1, -1, 1], [1, 1, 1]]), torch.ones(ROWS, 3), "all", torch.ones(3)])
def test_counts_that_make_no_sense(unet, references, mask):
    with pytest.raises(CacheError, match=r"-1 times|mask must be bool"):
        ReferenceCache.build(unet, references, mask)


# --- null references --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[3, 3], [1, 1], [0, 2], [5, 1]])
def test_shared_null_references_equal_latents_of_zeros(unet, sample, counts):
    most = max(counts)
    mask = torch.arange(most) < torch.tensor(counts)[:, None]
    plain = ReferenceCache.build(unet, torch.zeros(ROWS, most, C, SIDE, SIDE), mask)
    null = ReferenceCache.null(unet, torch.tensor(counts))
    assert_close(call(unet, sample, null), call(unet, sample, plain))
    assert (null.mask is None) == (counts == [1, 1])
    assert 2 * most * null.nbytes == plain.nbytes  # once for both people and all their null references


def test_null_references_are_not_no_references(unet, sample):
    nothing = call(unet, sample, None)
    two, none = (call(unet, sample, ReferenceCache.null(unet, torch.tensor([n, n]))) for n in (2, 0))
    assert_close(none, nothing)
    assert float((two - nothing).abs().max() / nothing.abs().max()) > 1e-2


def test_null_references_take_one_pass(unet, monkeypatch):
    rows = watch_rows(monkeypatch, unet)
    ReferenceCache.null(unet, torch.tensor([4, 0, 7]))
    ReferenceCache.null(unet, torch.tensor([4, 0, 7]), chunk_size=2)
    assert rows == [1, 2]


def test_null_references_of_another_size_and_of_selected_people(unet):
    large = torch.randn(3, 2 * C, 16, 12)
    null = ReferenceCache.null(unet, torch.tensor([1, 4, 2]), (16, 12))
    plain = ReferenceCache.build(unet, torch.zeros(1, 4, C, 16, 12))
    assert_close(call(unet, large[1:2], null.select([1])), call(unet, large[1:2], plain))
    assert "3 of 3 references take part\n  and count as 7" in repr(null)


@pytest.mark.parametrize("counts", [[[1, 2]], [], [1.0], [-1], None])
def test_wrong_null_counts(unet, counts):
    with pytest.raises(CacheError, match=r"counts must be|mask must be|-1 times"):
        ReferenceCache.null(unet, [1, 2] if counts is None else torch.tensor(counts))


# --- several caches in one call ---------------------------------------------------------------------------------------


def test_caches_side_by_side_equal_calls_one_after_the_other(unet, references):
    rows = torch.randn(5, 2 * C, SIDE, SIDE)
    null = ReferenceCache.null(unet, torch.tensor([3]))
    given = ReferenceCache.build(unet, references, PATTERN).repeat_interleave(2)
    together = call(unet, rows, (null, given))
    assert_close(together, torch.cat([call(unet, rows[:1], null), call(unet, rows[1:], given)]))


def test_gradients_reach_every_cache_in_a_call(unet, sample, references):
    leaves = [references.clone().requires_grad_() for _ in range(2)]
    joint = [ReferenceCache.build(unet, leaf[:1]) for leaf in leaves]
    denoise(unet, sample, 5, joint).square().sum().backward()
    alone = references.clone().requires_grad_()
    for row in range(2):
        denoise(unet, sample[row : row + 1], 5, ReferenceCache.build(unet, alone[:1])).square().sum().backward()
    unet.zero_grad()
    assert_close(leaves[0].grad[:1] + leaves[1].grad[:1], alone.grad[:1], 1e-4)
    assert all(float(leaf.grad.abs().max()) > 0 for leaf in leaves)


def test_caches_that_do_not_fit_together(unet, sample, references):
    cache = ReferenceCache.build(unet, references)
    with pytest.raises(CacheError, match="2 people x 1 and 2 people x 1"):
        call(unet, sample, (cache, cache))
    with pytest.raises(CacheError, match="another network"):
        call(unet, sample, (cache.select(0), ReferenceCache.null(make_unet(1), torch.tensor([1]))))
    with pytest.raises(CacheError, match="never filled"):
        call(unet, sample, (cache, ReferenceCache()))
    with pytest.raises(CacheError, match="must be a ReferenceCache"):
        call(unet, sample, (cache, None))


def test_processors_say_how_many_rows_they_serve(unet, references):
    entry = next(iter(ReferenceCache.build(unet, references).layers.values()))
    assert CacheKVProcessor(entry).rows == 2 and CacheKVProcessor(entry, share=3).rows == 6
    assert SideBySideProcessor([CacheKVProcessor(entry)] * 2).parts[1].entry is entry


# --- what nobody uses -------------------------------------------------------------------------------------------------


def test_compact_caches_leave_out_what_nobody_uses(unet, sample, references):
    full = ReferenceCache.build(unet, references, PATTERN)
    small = full.compact()
    assert (small.references, small.mask.tolist()) == (2, [[True, True], [True, False]])
    assert_close(call(unet, sample, small), call(unet, sample, full))
    alone = full.select([0]).compact()
    assert alone.mask is None and alone.references == 2 and alone.compact() is alone
    assert torch.equal(
        call(unet, sample[:1], alone), call(unet, sample[:1], ReferenceCache.build(unet, references[:1, [0, 2]]))
    )


def test_compact_keeps_counts_and_people_without_references(unet, sample, references):
    counted = ReferenceCache.build(unet, references, torch.tensor([[0, 0, 2], [0, 1, 4]]))
    assert counted.compact().mask.tolist() == [[2, 0], [1, 4]]
    assert_close(call(unet, sample, counted.compact()), call(unet, sample, counted))
    nobody = ReferenceCache.build(unet, references, torch.zeros(ROWS, 3, dtype=torch.bool)).compact()
    assert nobody.references == 1
    assert_close(call(unet, sample, nobody), call(unet, sample, None))
    with pytest.raises(CacheError, match="never filled"):
        ReferenceCache().compact()


def test_slices_are_views_and_lists_are_copies(unet, references):
    cache = ReferenceCache.build(unet, references)
    own, viewed, copied = (
        next(iter(each.layers.values())).keys for each in (cache, cache.select(slice(1, 2)), cache.select([1]))
    )
    assert viewed.data_ptr() == own[1].data_ptr() != copied.data_ptr()
    assert torch.equal(copied, viewed) and torch.equal(copied[0], own[1])
    assert as_slice(torch.tensor([2, 3, 4])) == slice(2, 5) and as_slice(torch.tensor([1])) == slice(1, 2)
    assert as_slice(torch.tensor([3, 0])).tolist() == [3, 0] and as_slice(torch.tensor([0, 0])).tolist() == [0, 0]


def test_every_reference_call_sees_equally_many_rows(unet, references, monkeypatch):
    rows = watch_rows(monkeypatch, unet)
    filled = ReferenceCache.build(unet, references, chunk_size=4)
    assert rows == [4, 4]
    rows.clear()
    few = ReferenceCache.build(unet, references[:1, :1], chunk_size=4)
    assert rows == [4]
    for name, entry in few.layers.items():
        assert torch.equal(entry.keys, filled.layers[name].keys[:1, : entry.tokens])


# --- the whole pipeline -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe() -> RefLDMPipeline:
    torch.manual_seed(3)
    vq = VQModel(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        num_vq_embeddings=64,
        norm_num_groups=4,
        scaling_factor=1.0,
    )
    torch.nn.init.normal_(vq.quantize.embedding.weight)
    pipe = RefLDMPipeline(vq, make_unet(7), to_scheduler(refldm_schedule()), 1, num_inference_steps=STEPS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(*shape: int, seed: int) -> Tensor:
    small = torch.rand(*shape, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small.flatten(0, -4), (32, 32), mode="bilinear").unflatten(0, shape)


LQ, REFERENCES = pictures(3, seed=0), pictures(3, 3, seed=1)
MASK = torch.tensor([[True, True, True], [False, False, False], [False, True, False]])


def written_out(pipe: RefLDMPipeline, states: list) -> list[Tensor]:
    """What the denoiser should have said at every recorded state, by the plain way: null references are latents of
    zeros that all pass, every branch and picture is called alone."""
    with torch.no_grad():
        condition = encode_latents(pipe.vq, LQ)
        latents = encode_references(pipe.vq, REFERENCES, MASK)
        expected = []
        for state in states:
            rows = []
            for i in range(len(LQ)):
                joined = torch.cat([state.x_t[i : i + 1], condition[i : i + 1]], dim=1)
                both = []
                for each in (torch.zeros_like(latents), latents):
                    cache = ReferenceCache.build(pipe.unet, each[i : i + 1], MASK[i : i + 1])
                    both.append(denoise(pipe.unet, joined, state.t, cache))
                rows.append(classifier_free_guidance(*both, 1.5))
            expected.append(torch.cat(rows))
    return expected


@pytest.mark.parametrize("as_batch", [None, True, False])
@pytest.mark.parametrize("rows", [None, 1, 2, 6])
def test_every_way_through_the_pipeline_equals_the_plain_one(pipe, as_batch, rows):
    states = []
    how = {"guidance_as_batch": as_batch, "rows_per_call": rows}
    result = pipe(LQ, REFERENCES, reference_mask=MASK, callback=states.append, **how)
    for state, expected in zip(states, written_out(pipe, states), strict=True):
        assert_close(state.eps, expected, 3e-5)
    default = pipe(LQ, REFERENCES, reference_mask=MASK)
    assert grey_levels(result.images, default.images) <= 1
    assert result.settings == default.settings


@pytest.mark.parametrize("as_batch", [True, False])
def test_references_pass_once_a_call_and_null_references_once_for_everybody(pipe, monkeypatch, as_batch):
    rows = watch_rows(monkeypatch, pipe.unet)
    pipe(LQ, REFERENCES, reference_mask=MASK, guidance_as_batch=as_batch, rows_per_call=2)
    passes, steps = 2 + 1, rows[3:]  # four references that take part, two at a time, and the null reference
    assert rows[:passes] == [2, 2, 2]
    assert steps == [2] * (3 if as_batch else 4) * STEPS


def test_neighbours_with_more_references_cost_a_picture_nothing(pipe, monkeypatch):
    widths = []
    inner = pipeline_module.denoise

    def watching(unet, sample, timestep, cache):
        widths.append([each.references for each in cache])
        return inner(unet, sample, timestep, cache)

    monkeypatch.setattr(pipeline_module, "denoise", watching)
    together = pipe(LQ, REFERENCES, reference_mask=MASK, rows_per_call=2).images
    assert widths[:3] == [[1, 3], [1, 1], [1, 1]]
    alone = pipe(LQ[2:], REFERENCES[2:, 1:2], seed=2, rows_per_call=2).images
    assert torch.equal(alone, together[2:])


def test_large_latents_go_one_picture_at_a_time(pipe, monkeypatch):
    assert (rows_per_call(16), rows_per_call(32), rows_per_call(64), rows_per_call(96)) == (4, 4, 1, 1)
    monkeypatch.setattr("refbfr_core.pipelines.rows.SINGLE_FROM", SIDE)
    rows = watch_rows(monkeypatch, pipe.unet)
    pipe(LQ, REFERENCES[:, :1])
    # Three references, the null reference, both branches of each picture.
    assert rows == [1] * 3 + [1] + [2] * 3 * STEPS
    with pytest.raises(ConfigError, match="rows_per_call"):
        pipe(LQ, rows_per_call=0)


# --- short types and compilation --------------------------------------------------------------------------------------


def test_a_call_in_bfloat16_stays_near_float32(unet, references):
    rows = torch.randn(2 * ROWS, 2 * C, SIDE, SIDE)
    short = copy.deepcopy(unet).to(torch.bfloat16)
    results = []
    for network in (unet, short):
        latents = references.to(network.dtype)
        null = ReferenceCache.null(network, torch.tensor([3, 2]))
        cache = (null, ReferenceCache.build(network, latents, PATTERN))
        results.append(call(network, rows.to(network.dtype), cache).float())
    assert_close(results[1], results[0], 0.03)


def test_a_restoration_in_bfloat16_stays_near_float32():
    pipe = load_pipeline("refldm", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(2, 3, 8, 8, generator=generator)
    lq, given = torch.nn.functional.interpolate(blocks, (128, 128), mode="bicubic").clamp(0, 1).unsqueeze(1).unbind(0)
    exact = pipe(lq, given[None], num_inference_steps=4)
    short = pipe.speed_up("bfloat16")(lq, given[None], num_inference_steps=4)
    decibels = -10 * (exact.images - short.images).square().mean().log10()
    assert 40 < float(decibels) < 90  # 51 when this was written; below 90: that bfloat16 was used at all
    assert (exact.settings.precision, short.settings.precision) == ("float32", "bfloat16")
    assert str(short.settings).endswith("bfloat16") and "float32" not in str(exact.settings)
    # Weights and codebook of the first stage keep their type; pictures leave in float32.
    assert pipe.vq.dtype == torch.float32 and pipe.unet.dtype == torch.bfloat16
    assert short.images.dtype == torch.float32


def test_a_compiled_denoiser_is_traced_once_and_exact(pipe):
    plain = pipe(LQ[:1], REFERENCES[:1], reference_mask=MASK[:1]).images
    fast = RefLDMPipeline(pipe.vq, copy.deepcopy(pipe.unet), pipe.scheduler, num_inference_steps=STEPS)
    fast.set_progress_bar_config(disable=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # The tracing is what could go wrong here; the code generator is PyTorch's own and takes minutes.
    assert fast.speed_up(compiled=True, channels_last=True, backend="eager") is fast
    for _ in range(2):
        assert grey_levels(fast(LQ[:1], REFERENCES[:1], reference_mask=MASK[:1]).images, plain) <= 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_unknown_types_are_refused(pipe):
    with pytest.raises(UnknownNameError, match="bfloat16"):
        pipe.speed_up("bfloat")
    with pytest.raises(ConfigError, match="float16"):
        pipe.speed_up("float16")
