"""PDGrad, PGDiff and DifFace as pipelines: what they compute, what they keep apart, what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_pdgrad import SIDE, components, difface, faces, pdgrad, pgdiff

from refbfr_core.diffusion import NonFiniteError, Repeats, Trace, add_noise, image_noise, make_schedule
from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError
from refbfr_core.images import to_network
from refbfr_core.models.adm_unet import ADMUNet
from refbfr_core.pipelines.pivot_guidance import GRADIENTS, PivotGuidance, PivotSettings
from refbfr_core.pipelines.pivot_losses import LossWeights, mean_target
from refbfr_core.pipelines.prior import prior_timesteps


@pytest.fixture(scope="module")
def pipe():
    return pdgrad()


def brute_force(pipe, x0, y_c, references, weights):
    """The four losses of one picture, written down again from eq. 12 to 18 with plain autograd."""

    def cosine(a, b):
        return 1 - torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))

    def low(x, y):
        total = 0
        if "arc" in weights.terms:
            mine, theirs = pipe.embedder.guidance_features(x), pipe.embedder.guidance_features(y)
            total = sum(cosine(a, b) for a, b in zip(mine[:3], theirs[:3], strict=True))
        if "vgg" in weights.terms:
            total = total + pipe.perceptual.perceptual_distance(x, y)
        return total

    def high(x, y):
        return cosine(pipe.embedder.guidance_features(x)[3], pipe.embedder.guidance_features(y)[3])

    values, gradients = {}, {}
    for name, loss, pictures in (
        ("low_c", low, [y_c]),
        ("low_r", low, references),
        ("high_c", high, [y_c]),
        ("high_r", high, references),
    ):
        x = x0.clone().requires_grad_(True)
        value = sum(loss(x, y) for y in pictures) / len(pictures)
        values[name] = value.detach()
        gradients[name] = torch.autograd.grad(value.sum(), x)[0]
    return values, gradients


@pytest.mark.parametrize("terms", [("arc", "vgg"), ("arc",), ("vgg",)])
def test_losses_and_gradients_are_those_of_equations_12_to_18(pipe, terms):
    x0, y_c = to_network(faces(1, 1)), to_network(faces(1, 2))
    references = [to_network(faces(1, seed)) for seed in (3, 4, 5)]
    weights = LossWeights(terms=terms)
    expected = brute_force(pipe, x0, y_c, references, weights)
    here = torch.ones(1, dtype=torch.bool)
    perceptual = pipe.perceptual if "vgg" in terms else None
    targets = [
        mean_target([(picture, here) for picture in pictures], pipe.embedder, perceptual)
        for pictures in ([y_c], references)
    ]
    got = PivotGuidance(pipe.embedder, pipe.perceptual, *targets, PivotSettings(weights=weights)).gradients(x0)
    for part, wanted in zip(got, expected, strict=True):
        for name in GRADIENTS:
            torch.testing.assert_close(part[name], wanted[name], rtol=2e-4, atol=2e-6)


def test_the_last_step_lands_on_the_mean_minus_s_sigma_g(pipe):
    lq, references = faces(1, 1), faces(1, 2, 1)
    call = {"num_inference_steps": 1000, "start": 1, "seed": 3, "coarse": lq}
    free = pipe(lq, references, scale=0.0, trace=Trace(keep=("x_t", "x0", "x_prev")), **call)
    moved = pipe(lq, references, scale=1e-3, gain=50.0, trace=Trace(keep=("x_prev",)), **call)
    x_t, x0 = free.trace.stack("x_t")[0], free.trace.stack("x0")[0]
    with torch.no_grad():
        code = pipe.unet(x_t, 0).sample[:, 3:]
    s = make_schedule("pdgrad")
    small = float(s.betas[1] * (1 - s.alphas_cumprod[0]) / (1 - s.alphas_cumprod[1]))
    variance = torch.exp((code + 1) / 2 * math.log(float(s.betas[0])) + (1 - code) / 2 * math.log(small))
    _, gradients = brute_force(pipe, x0, to_network(lq), [to_network(references[:, 0])], LossWeights())
    low, high = gradients["low_c"], gradients["high_r"]
    total = torch.zeros_like(low)
    for pivot, other in ((low, gradients["low_r"]), (high, gradients["high_c"])):
        if (pivot * other).sum() < 0:
            other = other - (pivot * other).sum() / pivot.square().sum() * pivot
            other = other * min(1.0, float(pivot.norm() / other.norm()))
        total = total + pivot + other
    difference = moved.trace.stack("x_prev")[0] - free.trace.stack("x_prev")[0]
    torch.testing.assert_close(difference, -1e-3 * 50 * variance * total, rtol=1e-3, atol=1e-7)


def test_sampling_starts_from_the_diffused_coarse_picture(pipe):
    lq = faces(1, 1)
    out = pipe(lq, coarse=lq, seed=5, start=700, num_inference_steps=1000 // 10, trace=Trace(keep=("x_t",)))
    first = out.settings.timesteps[0]
    assert first <= 699 and out.settings.timesteps[-1] == 0
    generator = torch.Generator().manual_seed(5)
    expected = add_noise(to_network(lq), image_noise([generator], (3, SIDE, SIDE)), first, make_schedule("pdgrad"))
    torch.testing.assert_close(out.trace.stack("x_t")[0], expected)
    # The paper's tau = 700 of 1000, counted from 1.
    assert prior_timesteps(make_schedule("pdgrad"), "adm", 1000, 700) == list(range(699, -1, -1))


def test_a_picture_is_the_same_alone_and_in_a_batch(pipe):
    lq, references = faces(3, 1), faces(3, 2, 2)
    together = pipe(lq, references, seed=7).images
    alone = pipe(lq[1:2], references[1:2], seed=8).images
    assert torch.equal(together[1:2], alone)
    assert torch.equal(pipe(lq, references, seed=7).images, together)
    # A random network amplifies rounding; most pixels still agree when calls are larger.
    large = pipe(lq, references, seed=7, rows_per_call=3).images
    assert (together - large).abs().median() < 1e-4
    with pytest.raises(ConfigError, match="rows_per_call"):
        pipe(lq, rows_per_call=0)
    assert not torch.allclose(pipe(lq, references, seed=70).images, together, atol=1e-2)


def test_masked_references_do_not_count(pipe):
    lq, references = faces(2, 1), faces(2, 2, 3)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    out = pipe(lq, references, reference_mask=mask, seed=1)
    assert out.settings.references == (2, 0)
    first = pipe(lq[:1], references[:1, :2], seed=1).images
    second = pipe(lq[1:], seed=2).images
    assert (out.images - torch.cat([first, second])).abs().max() < 1 / 255
    references[0, 2] = 0.0
    assert torch.equal(pipe(lq, references, reference_mask=mask, seed=1).images, out.images)


def test_without_references_only_the_coarse_picture_guides(pipe):
    lq, references = faces(1, 1), faces(1, 2, 1)
    assert torch.allclose(pipe(lq).images, pipe(lq, references, mode="A5").images, atol=1e-5)
    full, other = pipe(lq, references).images, pipe(lq, faces(1, 9, 1)).images
    assert not torch.allclose(full, other, atol=1e-4)
    assert not torch.allclose(pipe(lq, references, mode="A6").images, full, atol=1e-4)


def test_every_step_reports_what_the_surgery_did(pipe):
    out = pipe(faces(2, 1), faces(2, 2, 1), trace=True)
    assert len(out.trace) == len(out.settings.timesteps) == 5
    for step in out.trace.steps:
        names = set(step.stats)
        assert {f"loss_{name}" for name in GRADIENTS} <= names
        assert {"low_angle", "low_conflict", "low_k", "high_pivot_norm", "high_other_norm"} <= names
        conflict = step.stats["low_angle"] > 90
        assert torch.equal(conflict.float(), step.stats["low_conflict"])
        assert bool((step.stats["low_k"][~conflict] == 1).all())


def test_an_infinite_cap_is_ablation_a2_and_a_factor_of_s_and_gain_is_the_same(pipe):
    lq, references = faces(1, 1), faces(1, 2, 1)
    assert torch.equal(pipe(lq, references, cap=math.inf).images, pipe(lq, references, mode="A2").images)
    one, two = pipe(lq, references, scale=0.1, gain=100.0), pipe(lq, references, scale=0.2, gain=50.0)
    assert torch.allclose(one.images, two.images, atol=1e-4)
    assert pipe(lq, references).settings.guidance.startswith(f"mode full, gain {SIDE * SIDE}, cap 1")


def test_norm_ratio_makes_the_gradients_own_size_irrelevant(pipe):
    lq, references = faces(1, 1), faces(1, 2, 1)
    call = {"scaling": "norm-ratio", "scale": 0.3}
    weights = LossWeights(arc_low=3.0, vgg=3.0, arc_high=3.0)
    plain = pipe(lq, references, **call).images
    scaled = pipe(lq, references, weights=weights, **call).images
    assert (plain - scaled).abs().mean() < 1e-3 < (plain - pipe(lq, references, scale=0).images).abs().mean()


def test_features_of_both_pictures_are_computed_once_and_the_denoiser_never_differentiated(monkeypatch):
    pipe, calls = pdgrad(), []
    inner = pipe.embedder.guidance_features

    def counted(images):
        calls.append(images.requires_grad)
        return inner(images)

    monkeypatch.setattr(pipe.embedder, "guidance_features", counted)
    out = pipe(faces(1, 1), faces(1, 2, 3))
    steps = len(out.settings.timesteps)
    assert calls.count(False) == 4 and calls.count(True) == steps
    assert not any(weight.requires_grad for weight in pipe.unet.parameters())


def test_another_coarse_picture_changes_the_result_and_names_itself(pipe):
    lq = faces(1, 1)
    for coarse, title in (("none", "none"), (lambda x: -x, "lambda"), (faces(1, 3), "caller"), (None, "CoarseNet")):
        assert title in pipe(lq, coarse=coarse).settings.coarse
    assert not torch.allclose(pipe(lq).images, pipe(lq, coarse=faces(1, 3)).images, atol=1e-3)
    assert "coarse picture by" in str(pipe(lq).settings)


def test_a_saved_pipeline_comes_back_the_same(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    lq, references = faces(1, 1), faces(1, 2, 1)
    for name in ("unet", "embedder", "perceptual", "coarse"):
        mine, theirs = (getattr(each, name).state_dict() for each in (pipe, again))
        assert mine.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in mine.items())
    # Weights from a file lie elsewhere in memory, which may choose another kernel; strong guidance by a random network
    # would make something visible of that rounding.
    one, two, free = (each(lq, references, scale=s).images for each, s in ((pipe, 2e-3), (again, 2e-3), (pipe, 0.0)))
    assert 20 * (one - two).abs().mean() < 1e-3 < (one - free).abs().mean()
    assert again.config.start == 500


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"start": 0}, ConfigError, "start is 0"),
        ({"start": 1001}, ConfigError, "1 ... 1000"),
        ({"scale": -1.0}, ConfigError, "scale"),
        ({"gain": float("nan")}, ConfigError, "gain"),
        ({"cap": -1.0}, ConfigError, "cap"),
        ({"mode": "A7"}, UnknownNameError, "A7"),
        ({"scaling": "norm"}, UnknownNameError, "norm-ratio"),
        ({"coarse": faces(2, 1)}, ConfigError, "coarse is"),
        ({"coarse": "no-such-restorer"}, UnknownNameError, "no-such-restorer"),
        ({"coarse": lambda x: x[..., :16]}, ImageContractError, "same shape"),
        ({"coarse": lambda x: x * float("nan")}, NonFiniteError, "NaN"),
        ({"num_inference_steps": 0}, ConfigError, "0"),
        ({"seed": 1, "generator": torch.Generator()}, ConfigError, "both seed and generator"),
        ({"references": faces(2, 1, 1)}, ImageContractError, "references"),
    ],
)
def test_impossible_calls_are_refused(pipe, changes, error, says):
    with pytest.raises(error, match=says):
        pipe(faces(1, 1), **changes)


def test_wrong_sizes_components_and_terms_are_refused(pipe):
    with pytest.raises(ImageContractError, match="32×32"):
        pipe(torch.rand(1, 3, 64, 64))
    with pytest.raises(UnknownNameError, match="arc"):
        LossWeights(terms=("ark",))
    with pytest.raises(ConfigError, match="at least one"):
        LossWeights(terms=())
    parts = components()
    plain = ADMUNet(SIDE, (8,), (1,), (0,), 8, out_channels=3, groups=4)
    with pytest.raises(ConfigError, match="learned variance"):
        pdgrad(unet=plain)
    parts["scheduler"].register_to_config(variance_type="fixed_small")
    with pytest.raises(ConfigError, match="variance_type"):
        pdgrad(scheduler=parts["scheduler"])
    with pytest.raises(ConfigError, match="no coarse restorer"):
        pdgrad(coarse=None)(faces(1, 1))


def test_a_network_that_returns_nan_stops_the_run():
    pipe = pdgrad()
    with torch.no_grad():
        pipe.perceptual.channel_weights[2].fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="NaN"):
        pipe(faces(1, 1), faces(1, 2, 1))


def test_pgdiff_follows_the_sum_of_squares():
    pipe = pgdiff()
    lq, references = faces(2, 1), faces(2, 2, 1)
    guided, free = pipe(lq, seed=1, scale=0.5), pipe(lq, seed=1, scale=0.0)
    y_c = pipe.coarse.restore(to_network(lq))
    distances = [(to_network(out.images) - y_c).square().mean() for out in (guided, free)]
    assert distances[0] < 0.5 * distances[1]
    out = pipe(lq, references, seed=1, trace=True)
    assert {"loss_smooth", "loss_reference"} <= set(out.trace.steps[0].stats)
    assert out.settings.timesteps[0] == 999 and len(out.trace) == 10
    assert not torch.allclose(out.images, pipe(lq, seed=1).images, atol=1e-4)
    alone = pipe(lq[1:], references[1:], seed=2).images
    assert (alone - out.images[1:]).abs().max() < 1 / 255


def test_pgdiff_repeats_steps_and_asks_a_step_restorer_once_a_step():
    pipe, asked = pgdiff(), []

    def restorer(x_t, degraded, t):
        asked.append(t)
        return degraded * 3

    lq = faces(1, 1)
    out = pipe(lq, step_restorer=restorer, repeats=Repeats(2, start=8, end=4), trace=True)
    assert len(out.trace) == 13 and len(asked) == 10 and asked == sorted(asked, reverse=True)
    assert out.settings.coarse == "a restorer of every step"


def test_pgdiff_takes_norm_ratios_and_refuses_nonsense():
    pipe, lq = pgdiff(), faces(1, 1)
    results = {scope: pipe(lq, scaling="norm-ratio", scope=scope, scale=0.05).images for scope in ("image", "batch")}
    assert torch.allclose(results["image"], results["batch"], atol=1e-5)
    with pytest.raises(UnknownNameError, match="scope"):
        pipe(lq, scope="picture")
    with pytest.raises(ConfigError, match="reference_weight"):
        pipe(lq, reference_weight=-1.0)


def test_difface_starts_part_way_and_looks_at_no_reference():
    pipe, lq = difface(), faces(1, 1)
    out = pipe(lq, faces(1, 2, 2), seed=3)
    assert out.settings.timesteps[0] == 400 and out.settings.references == (0,)
    assert torch.equal(out.images, pipe(lq, seed=3).images)
    assert not torch.equal(out.images, pipe(lq, seed=3, eta=0.0).images)
    with pytest.raises(ConfigError, match="eta"):
        pipe(lq, eta=2.0)
