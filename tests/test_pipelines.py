"""The ReF-LDM pipeline on tiny random networks: state, seeds, batches, references, guidance, saving, bad input."""

import copy

import pytest
import torch
from diffusers import UNet2DModel, VQModel

from refbfr_core import load_pipeline
from refbfr_core.diffusion import NonFiniteError, image_generators, image_noise, refldm_schedule, to_scheduler
from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError, WeightsError
from refbfr_core.images import MAX_REFERENCES, from_network, to_uint8
from refbfr_core.models import ReferenceCache, decode_latents, denoise, encode_latents
from refbfr_core.pipelines import RefLDMPipeline, encode_references
from refbfr_core.pipelines.rows import in_groups, row_groups
from refbfr_core.weights import save_network

SIDE = 32
STEPS = 4


def tiny_networks():
    torch.manual_seed(7)
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
    unet = UNet2DModel(
        sample_size=4,
        in_channels=32,
        out_channels=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=16,
        norm_num_groups=8,
    )
    # Sharper keys and queries, so that references matter in a random network.
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "to_q.weight" in name or "to_k.weight" in name or "to_out.0.weight" in name:
                parameter.mul_(6)
    return vq, unet


@pytest.fixture(scope="module")
def networks():
    return tiny_networks()


@pytest.fixture
def pipe(networks):
    vq, unet = networks
    pipe = RefLDMPipeline(vq, unet, to_scheduler(refldm_schedule()), patch_size=2, num_inference_steps=STEPS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(*shape, seed=0):
    """Smooth random pictures in [0, 1], so that they differ in more than noise."""
    small = torch.rand(*shape, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(small.flatten(0, -4), (SIDE, SIDE), mode="bilinear")
    return large.unflatten(0, shape)


@pytest.fixture(scope="module")
def lq():
    return pictures(4)


@pytest.fixture(scope="module")
def references():
    return pictures(4, 2, seed=1)


def grey_levels(a, b):
    return (to_uint8(a).int() - to_uint8(b).int()).abs().max().item()


def test_result_keeps_the_contract_and_says_how_it_was_made(pipe, lq, references):
    result = pipe(lq, references, seed=5)
    assert result.images.shape == lq.shape and result.images.dtype == torch.float32
    assert result.images.min() >= 0 and result.images.max() <= 1
    assert not result.images.requires_grad
    settings = result.settings
    assert settings.seeds == (5, 6, 7, 8) and settings.references == (2,) * 4
    assert settings.timesteps == (999, 749, 499, 249) and settings.guidance_scale == 1.5
    assert str(settings) == ("ReF-LDM, 32 px, 4 trailing steps, guidance 1.5, eta 0, seeds 5-8, references 2")
    assert result.trace is None


def test_references_change_the_result_and_different_ones_differently(pipe, lq, references):
    none = pipe(lq).images
    right = pipe(lq, references).images
    other = pipe(lq, pictures(4, 2, seed=2)).images
    assert (right - none).abs().mean() > 1e-3
    assert (right - other).abs().mean() > 1e-3


def test_reference_order_does_not_matter_beyond_rounding(pipe, lq, references):
    assert grey_levels(pipe(lq, references).images, pipe(lq, references.flip(1)).images) <= 1


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_same_call_twice_gives_the_same_bytes(pipe, lq, references, eta):
    torch.manual_seed(1)
    first = pipe(lq, references, seed=3, eta=eta).images
    torch.manual_seed(2)
    assert torch.equal(first, pipe(lq, references, seed=3, eta=eta).images)


def test_the_global_random_state_is_left_alone(pipe, lq):
    state = torch.random.get_rng_state()
    pipe(lq, eta=1.0)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("with_references", [False, True])
def test_alone_in_a_batch_and_in_another_order(pipe, lq, references, with_references, eta):
    refs = references if with_references else None
    together = pipe(lq, refs, seed=10, eta=eta).images
    order = [2, 0, 3, 1]
    shuffled = pipe(lq[order], None if refs is None else refs[order], seed=[10 + i for i in order], eta=eta).images
    assert grey_levels(shuffled, together[order]) <= 1
    for i in range(4):
        alone = pipe(lq[i : i + 1], None if refs is None else refs[i : i + 1], seed=10 + i, eta=eta).images
        assert grey_levels(alone, together[i : i + 1]) <= 1


def test_starting_noise_depends_on_the_image_seed_only(pipe, lq):
    starts = []

    def keep(state):
        if state.index == 0:
            starts.append(state.x_t.clone())

    pipe(lq, seed=10, callback=keep)
    pipe(lq[1:3], seed=11, callback=keep)
    pipe(lq[:2], seed=[12, 10], callback=keep)
    pipe(lq[:1], generator=image_generators(13, 1), callback=keep)
    assert torch.equal(starts[1], starts[0][1:3])
    assert torch.equal(starts[2], starts[0][[2, 0]])
    assert torch.equal(starts[3], starts[0][3:])
    assert not torch.equal(starts[0][0], starts[0][1])


def test_nothing_of_one_call_reaches_the_next(networks, pipe, lq, references):
    pipe(lq[:1], references[:1], seed=1)
    after = pipe(lq[1:2], seed=2).images
    vq, unet = (copy.deepcopy(network) for network in networks)
    fresh = RefLDMPipeline(vq, unet, to_scheduler(refldm_schedule()), patch_size=2, num_inference_steps=STEPS)
    fresh.set_progress_bar_config(disable=True)
    assert torch.equal(after, fresh(lq[1:2], seed=2).images)


def test_networks_keep_their_mode_also_when_a_call_fails(pipe, lq):
    pipe.unet.train()
    pipe.vq.eval()

    def stop(state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(lq, callback=stop)
    assert pipe.unet.training and not pipe.vq.training
    pipe.unet.eval()


def test_padding_in_the_mask_does_not_count(pipe, lq, references):
    padded = torch.cat([references, torch.zeros_like(references[:, :1])], dim=1)
    mask = torch.tensor([[True, True, False]] * 4)
    assert grey_levels(pipe(lq, padded, reference_mask=mask).images, pipe(lq, references).images) <= 1
    padded[:, 2] = 1.0
    again = pipe(lq, padded, reference_mask=mask)
    assert grey_levels(again.images, pipe(lq, references).images) <= 1
    assert again.settings.references == (2,) * 4


def test_a_person_without_references_is_restored_as_without_references(pipe, lq, references):
    mask = torch.tensor([[True, True], [False, False], [True, False], [True, True]])
    mixed = pipe(lq, references, reference_mask=mask)
    assert mixed.settings.references == (2, 0, 1, 2)
    assert grey_levels(mixed.images[1:2], pipe(lq[1:2], seed=1).images) <= 1
    nobody = pipe(lq, references, reference_mask=torch.zeros(4, 2, dtype=torch.bool))
    assert torch.equal(nobody.images, pipe(lq).images)


def test_guidance_branches_as_batch_or_in_sequence_agree(pipe, lq, references):
    batch = pipe(lq, references, guidance_scale=2.0).images
    sequence = pipe(lq, references, guidance_scale=2.0, guidance_as_batch=False).images
    assert grey_levels(batch, sequence) <= 1
    assert grey_levels(batch, pipe(lq, references, guidance_scale=1.0).images) > 1


def test_scale_one_evaluates_one_branch_and_no_references_none(pipe, lq, references, monkeypatch):
    rows = []
    forward = pipe.unet.forward

    def counting(sample, timestep, **kwargs):
        rows.append(len(sample))
        return forward(sample, timestep, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", counting)
    pipe(lq)
    assert rows == [4] * STEPS
    rows.clear()
    pipe(lq, references, guidance_scale=1.0)
    assert rows == [4] * 2 + [4] * STEPS  # four people's two references once a call
    rows.clear()
    pipe(lq, references, guidance_scale=1.5)
    assert rows == [4] * 2 + [4] + [4] * 2 * STEPS  # one pass for all null references; twice the rows in each step
    rows.clear()
    pipe(lq[:1], references[:1], guidance_scale=1.5)
    assert rows == [4] + [4] + [4] * STEPS  # a single person fills a group


@pytest.mark.parametrize(("count", "size", "groups"), [(1, 4, 1), (4, 4, 1), (5, 4, 2), (1, 2, 1), (3, 2, 2)])
def test_rows_come_in_full_groups(count, size, groups):
    rows = row_groups(count, size)
    assert [len(group) for group in rows] == [size] * groups
    together = torch.cat(rows)
    assert together[:count].tolist() == list(range(count)) and together.max() < count


def test_functions_see_full_groups_and_copies_are_thrown_away():
    seen = []
    values = torch.arange(5.0)
    assert torch.equal(in_groups(lambda rows: seen.append(len(rows)) or rows * 2, values), values * 2)
    assert seen == [4, 4]


def test_guidance_is_the_spec_formula_with_zero_latents_as_null_references(pipe, lq, references):
    """One DDIM step by hand, with two separate caches (section 2.4 of the behavioural notes)."""
    with torch.no_grad():
        condition = encode_latents(pipe.vq, lq, 2)
        latents = encode_references(pipe.vq, references, patch_size=2)
        x = image_noise(image_generators(0, 4), condition.shape[1:])
        joined = torch.cat([x, condition], dim=1)
        null = denoise(pipe.unet, joined, 999, ReferenceCache.build(pipe.unet, torch.zeros_like(latents)))
        given = denoise(pipe.unet, joined, 999, ReferenceCache.build(pipe.unet, latents))
    estimates = []
    pipe(lq, references, callback=lambda state: estimates.append(state.eps))
    torch.testing.assert_close(estimates[0], null + 1.5 * (given - null), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(estimates[0], given, atol=1e-2)


def test_decoding_goes_through_the_codebook(pipe, lq):
    last = []
    images = pipe(lq, callback=lambda state: last.append(state.x_prev)).images
    with torch.no_grad():
        quantised = from_network(decode_latents(pipe.vq, last[-1], 2, quantize=True))
        not_quantised = from_network(decode_latents(pipe.vq, last[-1], 2, quantize=False))
    assert torch.equal(images, quantised)
    assert not torch.allclose(images, not_quantised, atol=1e-2)


def test_callback_and_trace_see_every_step(pipe, lq):
    seen = []
    result = pipe(lq, callback=lambda state: seen.append((state.index, state.t)), trace=True)
    assert seen == list(enumerate((999, 749, 499, 249)))
    assert result.trace.timesteps == [999, 749, 499, 249]
    assert result.trace.stack("x0").shape == (4, 4, 16, 4, 4)


def test_thirty_steps_are_thirty_one(pipe, lq):
    assert len(pipe(lq[:1], num_inference_steps=30).settings.timesteps) == 31


@pytest.mark.parametrize("encoding", ["separate", "strip"])
def test_saved_and_loaded_pipeline_gives_the_same_bytes(networks, lq, references, tmp_path, encoding):
    vq, unet = networks
    pipe = RefLDMPipeline(
        vq, unet, to_scheduler(refldm_schedule()), 2, encoding, num_inference_steps=3, guidance_scale=2.5
    )
    pipe.save_pretrained(tmp_path)
    loaded = RefLDMPipeline.from_pretrained(tmp_path)
    for each in (pipe, loaded):
        each.set_progress_bar_config(disable=True)
    expected, got = pipe(lq, references, seed=9), loaded(lq, references, seed=9)
    assert torch.equal(expected.images, got.images)
    assert expected.settings == got.settings
    assert loaded.config.reference_encoding == encoding and got.settings.guidance_scale == 2.5


def test_strip_encoding_mixes_references_and_separate_does_not(networks, references):
    vq, _ = networks
    changed = references.clone()
    changed[:, 1] = 1 - changed[:, 1]
    with torch.no_grad():
        for encoding, mixes in (("separate", False), ("strip", True)):
            before, after = (encode_references(vq, x, patch_size=2, encoding=encoding) for x in (references, changed))
            assert torch.allclose(before[:, 0], after[:, 0], atol=1e-5) is not mixes
        strip = encode_references(vq, references, encoding="strip")
        whole = encode_latents(vq, torch.cat([references[:, 0], references[:, 1]], dim=-1))
        torch.testing.assert_close(torch.cat([strip[:, 0], strip[:, 1]], dim=-1), whole)
        # Padding must stay out of the strip.
        masked = encode_references(vq, references, torch.tensor([[True, False]] * 4), encoding="strip")
        torch.testing.assert_close(masked[:, 0], encode_latents(vq, references[:, 0]))
        assert not masked[:, 1].any()


def test_load_pipeline_reads_checked_weights(networks, lq, tmp_path):
    card = {"summary": "random", "training_data": "none", "recipe": {"steps": 0}}
    for name, network in zip(("refldm-vq", "refldm-unet"), networks, strict=True):
        save_network(network, name, tmp_path, card)
    pipe = load_pipeline("refldm", device="cpu", root=tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.resolution == SIDE and pipe.config.patch_size == 2
    assert pipe(lq, num_inference_steps=2).images.shape == lq.shape
    weights = next((tmp_path / "refldm-unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="truncated"):
        load_pipeline("refldm", device="cpu", root=tmp_path)


def test_unknown_names_say_the_nearest():
    with pytest.raises(UnknownNameError, match="refldm"):
        load_pipeline("ref-ldm")
    with pytest.raises(UnknownNameError, match="paper"):
        load_pipeline("refldm", profile="papers")


def test_paper_profile_says_what_has_to_be_fetched():
    with pytest.raises(WeightsError, match=r"vqgan\.ckpt.*github"):
        load_pipeline("refldm", profile="paper")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.double(), "float"),
        (lambda x: x * 255, "255"),
        (lambda x: x * 2 - 1, "from_network"),
        (lambda x: x[0], r"x\[None\]"),
        (lambda x: x[:0], "empty"),
        (lambda x: x[:, :1], "grey"),
        (lambda x: x[..., :-1], r"32×31.*32×32"),
        (lambda x: torch.full_like(x, torch.nan), "NaN"),
    ],
)
def test_bad_pictures_are_refused(pipe, lq, change, message):
    with pytest.raises(ImageContractError, match=message):
        pipe(change(lq))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :0], "references=None"),
        (lambda x: x[:, :1].expand(-1, 30, -1, -1, -1), rf"30 references.*{MAX_REFERENCES}"),
        (lambda x: x[..., :16, :16], "16×16.*32×32"),
        (lambda x: x[:, 0], "references"),
        (lambda x: x[:2], "2 people.*4 images"),
        (lambda x: x + 1, "references lies"),
    ],
)
def test_bad_references_are_refused(pipe, lq, references, change, message):
    with pytest.raises(ImageContractError, match=message):
        pipe(lq, change(references))


def test_as_many_references_as_allowed_work(pipe, lq, references):
    many = references[:1, :1].expand(-1, MAX_REFERENCES, -1, -1, -1)
    assert pipe(lq[:1], many).settings.references == (MAX_REFERENCES,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": [1, 2]}, "2 seeds for 4"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"generator": torch.Generator()}, "one torch.Generator for 4"),
        ({"seed": 1, "generator": torch.Generator()}, "both seed and generator"),
        ({"num_inference_steps": 0}, "steps"),
        ({"num_inference_steps": 1001}, "steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"eta": -0.5}, "eta"),
        ({"reference_mask": torch.ones(4, 2, dtype=torch.bool)}, "without references"),
    ],
)
def test_bad_settings_are_refused(pipe, lq, arguments, message):
    with pytest.raises(ConfigError, match=message):
        pipe(lq, **arguments)


@pytest.mark.parametrize("part", ["unet.conv_in", "vq.encoder.conv_in", "vq.decoder.conv_out"])
def test_a_network_with_nan_raises_instead_of_inventing_a_picture(networks, lq, references, part):
    vq, unet = (copy.deepcopy(network) for network in networks)
    pipe = RefLDMPipeline(vq, unet, to_scheduler(refldm_schedule()), patch_size=2, num_inference_steps=2)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        component, path = part.split(".", 1)
        getattr(pipe, component).get_submodule(path).weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="NaN"):
        pipe(lq, references)


def test_components_that_do_not_fit_are_refused(networks):
    vq, unet = networks
    scheduler = to_scheduler(refldm_schedule())
    with pytest.raises(ConfigError, match="patch_size=1.*need 2"):
        RefLDMPipeline(vq, unet, scheduler, patch_size=1)
    with pytest.raises(UnknownNameError, match="strip"):
        RefLDMPipeline(vq, unet, scheduler, patch_size=2, reference_encoding="stripe")
    with pytest.raises(UnknownNameError, match="trailing"):
        RefLDMPipeline(vq, unet, scheduler, patch_size=2, timestep_spacing="trail")
    keywords = {
        "block_out_channels": (8,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "norm_num_groups": 8,
    }
    with pytest.raises(ConfigError, match="16 and returns 16"):
        RefLDMPipeline(vq, UNet2DModel(sample_size=4, in_channels=16, out_channels=16, **keywords), scheduler)
    with pytest.raises(ConfigError, match="sample_size"):
        RefLDMPipeline(vq, UNet2DModel(sample_size=None, in_channels=32, out_channels=16, **keywords), scheduler, 2)
