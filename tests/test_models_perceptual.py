"""Perceptual features: equal to the lpips library where they must be, and a distance everywhere."""

from __future__ import annotations

import warnings

import pytest
import torch

from refbfr_core.errors import ConfigError, ImageContractError, UnknownNameError
from refbfr_core.images import to_network
from refbfr_core.metrics.perceptual import TRUNKS, load_lpips
from refbfr_core.models import LPIPS_TAPS, PDGRAD_TAPS, LPIPSFeatures, PerceptualFeatures, feature_distances
from refbfr_core.models.perceptual_lpips import _LEAST_SIDES


@pytest.fixture(scope="module")
def vgg():
    """The lpips network with its learned channel weights on a random VGG16, whose real weights are not here."""
    lpips = pytest.importorskip("lpips")
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torchvision")
        return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)


@pytest.fixture(scope="module")
def toy():
    torch.manual_seed(5)
    network = PerceptualFeatures().eval().requires_grad_(False)
    # Uneven channel weights, as after a training.
    for weight in network.channel_weights:
        weight.copy_(torch.randn_like(weight))
    return network


def pair(batch=2, side=64, seed=0):
    """Two batches in [-1, 1]: smooth pictures with noise on them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, batch, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse.flatten(0, 1), (side, side), mode="bicubic")
    noisy = smooth + 0.1 * torch.randn(smooth.shape, generator=generator)
    return to_network(noisy.clamp(0, 1)).unflatten(0, (2, batch))


def test_equals_lpips_with_vgg_layer_by_layer(vgg):
    a, b = pair()
    with torch.no_grad():
        total, layers = vgg(a, b, retPerLayer=True)
        features = LPIPSFeatures(vgg)
        terms = features.perceptual_terms(a, b)
    assert terms.shape == (2, 5) and float(total.min()) > 0.01
    torch.testing.assert_close(terms, torch.cat([layer.flatten(1) for layer in layers], 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(features.perceptual_distance(a, b), total.flatten(), rtol=0, atol=1e-5)


def test_equals_lpips_on_real_weights_and_real_photos(shared_dir, monkeypatch):
    pytest.importorskip("lpips")
    from refbfr_core.images import read_image

    monkeypatch.setenv("TORCH_HOME", str(shared_dir / "faces" / "models" / "torch_home"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the kit's trunk is a half-precision copy and says so
        network = load_lpips("squeeze")
    photos = shared_dir / "faces" / "photos" / "identities" / "refldm"
    target, lq = (to_network(read_image(photos / name)[:, :, ::4, ::4]) for name in ("target.png", "lq.png"))
    features = LPIPSFeatures(network)
    assert len(features.guidance_features(lq)) == 7
    with torch.no_grad():
        expected = network(lq, target).flatten()
        assert float(expected) > 0.1
        torch.testing.assert_close(features.perceptual_distance(lq, target), expected, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="VGG16 only"):
        LPIPSFeatures(network, taps=LPIPS_TAPS)


def test_its_gradient_is_that_of_lpips(vgg):
    a, b = pair(1)
    mine, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    LPIPSFeatures(vgg).perceptual_distance(mine, b).sum().backward()
    vgg(theirs, b).sum().backward()
    assert float(theirs.grad.abs().max()) > 0
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-9)


def test_taps_by_name(vgg):
    a, b = pair()
    ours, named, paper = LPIPSFeatures(vgg), LPIPSFeatures(vgg, taps=LPIPS_TAPS), LPIPSFeatures(vgg, taps=PDGRAD_TAPS)
    terms = ours.perceptual_terms(a, b)
    torch.testing.assert_close(named.perceptual_terms(a, b), terms, rtol=0, atol=1e-7)
    other = paper.perceptual_terms(a, b)
    torch.testing.assert_close(other[:, :4], terms[:, :4], rtol=0, atol=1e-7)
    assert not torch.allclose(other[:, 4], terms[:, 4], rtol=1e-3)
    # What a convolution gives before its ReLU is another layer; ReLUs in place must not overwrite it.
    before = LPIPSFeatures(vgg, taps=("conv1_2", *LPIPS_TAPS[1:]), normalise=False).guidance_features(a)[0]
    after = LPIPSFeatures(vgg, taps=LPIPS_TAPS, normalise=False).guidance_features(a)[0]
    assert float(before.min()) < 0
    torch.testing.assert_close(before.relu(), after)
    with pytest.raises(UnknownNameError, match="relu5_3"):
        LPIPSFeatures(vgg, taps=(*LPIPS_TAPS[:4], "rely5_3"))
    for wrong in (LPIPS_TAPS[:4], ("relu2_2", *LPIPS_TAPS[1:]), (*LPIPS_TAPS[:3], "relu5_3", "relu4_3")):
        with pytest.raises(ConfigError, match="one layer of each stage"):
            LPIPSFeatures(vgg, taps=wrong)


def test_equation_14_to_the_letter_leaves_features_as_long_as_they_are(vgg, toy):
    a, b = pair()
    literal = LPIPSFeatures(vgg, normalise=False)
    outs = [vgg.net(vgg.scaling_layer(x)) for x in (a, b)]
    expected = [
        (lin.model[-1].weight.view(1, -1, 1, 1) * (x - y).square()).sum(1).mean((1, 2))
        for lin, x, y in zip(vgg.lins, *outs, strict=True)
    ]
    torch.testing.assert_close(literal.perceptual_terms(a, b), torch.stack(expected, 1), rtol=1e-4, atol=1e-6)
    plain = PerceptualFeatures(normalise=False)
    plain.load_state_dict(toy.state_dict())
    features = [(x - y) * w.view(1, -1, 1, 1) for x, y, w in zip(toy(a), toy(b), toy.channel_weights, strict=True)]
    expected = torch.stack([f.square().sum(1).mean((1, 2)) for f in features], 1)
    torch.testing.assert_close(plain.perceptual_terms(a, b), expected)


def test_least_sides_are_those_of_the_metric():
    assert {name: trunk.least_side for name, trunk in TRUNKS.items()} == {
        name: side for name, side in _LEAST_SIDES.items() if name in TRUNKS
    }


def test_other_networks_are_refused():
    with pytest.raises(ConfigError, match="load_lpips"):
        LPIPSFeatures(torch.nn.Conv2d(3, 3, 1))


def test_negative_channel_weights_are_refused():
    lpips = pytest.importorskip("lpips")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torchvision")
        network = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    with torch.no_grad():
        network.lins[2].model[-1].weight[0, 5] = -0.1
    with pytest.raises(ConfigError, match="negative"):
        LPIPSFeatures(network)


@pytest.mark.parametrize("which", ["vgg", "toy"])
class TestDistance:
    """What both networks promise."""

    @pytest.fixture
    def network(self, which, request):
        network = request.getfixturevalue(which)
        return LPIPSFeatures(network) if which == "vgg" else network

    def test_is_a_distance(self, network):
        a, b = pair()
        there, back = network.perceptual_distance(a, b), network.perceptual_distance(b, a)
        assert there.shape == (2,) and bool((there > 0).all())
        torch.testing.assert_close(there, back, rtol=1e-6, atol=0)
        assert network.perceptual_distance(a, a).tolist() == [0.0, 0.0]
        features = [network.guidance_features(x) for x in (a, b)]
        assert len(features[0]) == 5
        torch.testing.assert_close(feature_distances(*features).sum(1), there)

    def test_a_picture_does_not_depend_on_its_batch(self, network):
        a, b = pair(3)
        together = network.perceptual_terms(a, b)
        for row in range(3):
            alone = network.perceptual_terms(a[row : row + 1], b[row : row + 1])
            torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-4, atol=1e-7)
        a = a.clone().requires_grad_()
        network.perceptual_distance(a, b)[1].backward()
        assert float(a.grad[1].abs().max()) > 0 and a.grad[[0, 2]].count_nonzero() == 0

    def test_gradient_leads_downhill(self, network):
        a, b = pair(1)
        a = a.clone().requires_grad_()
        before = network.perceptual_distance(a, b)
        before.sum().backward()
        assert bool(torch.isfinite(a.grad).all())
        downhill = a.detach() - 1e-2 * a.grad / a.grad.abs().max()
        assert float(network.perceptual_distance(downhill, b)) < float(before.detach())

    def test_gradient_is_finite_on_flat_pictures(self, network):
        for level in (-1.0, 0.0, 1.0):
            flat = torch.full((1, 3, 32, 32), level, requires_grad=True)
            network.perceptual_distance(flat, pair(1, 32)[1]).sum().backward()
            assert bool(torch.isfinite(flat.grad).all())
            same = torch.full((1, 3, 32, 32), level, requires_grad=True)
            network.perceptual_distance(same, same.detach()).sum().backward()
            assert same.grad.count_nonzero() == 0

    @pytest.mark.parametrize(
        ("images", "said"),
        [
            (torch.zeros(3, 64, 64), r"images\[None\]"),
            (torch.zeros(1, 1, 64, 64), r"\(B, 3, H, W\)"),
            (torch.zeros(0, 3, 64, 64), "at least"),
            (torch.zeros(1, 3, 64, 8), "interpolate"),
            (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "from_uint8"),
            (torch.full((1, 3, 64, 64), 128.0), "divide bytes by 255"),
            (torch.full((1, 3, 64, 64), float("nan")), "not numbers"),
            ([[0.0]], "list"),
        ],
    )
    def test_bad_pictures_are_named(self, network, images, said):
        with pytest.raises(ImageContractError, match=said):
            network.guidance_features(images)

    def test_pictures_of_two_sizes_are_not_compared(self, network):
        with pytest.raises(ImageContractError, match="one shape"):
            network.perceptual_distance(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 32, 32))


def test_the_toy_network_works_at_any_size(toy):
    for shape in ((32, 32), (64, 96), (100, 75)):
        taps = toy(torch.zeros(1, 3, *shape))
        assert [tap.shape[1] for tap in taps] == [16, 24, 32, 48, 64]
        assert min(taps[-1].shape[-2:]) >= 1
    with pytest.raises(ImageContractError, match="32 x 32"):
        toy(torch.zeros(1, 3, 31, 64))
    assert PerceptualFeatures(first_stride=1).least_side == 16


def test_the_sign_of_a_channel_weight_does_not_matter(toy):
    a, b = pair()
    turned = PerceptualFeatures()
    turned.load_state_dict(toy.state_dict())
    with torch.no_grad():
        for weight in turned.channel_weights:
            weight.abs_()
    torch.testing.assert_close(turned.perceptual_distance(a, b), toy.perceptual_distance(a, b))


def test_wrong_settings_are_refused():
    for wrong in ({"widths": (8, 8)}, {"widths": (8, 8, 0, 8, 8)}, {"first_stride": 3}, {"eps": 0.0}):
        with pytest.raises(ConfigError):
            PerceptualFeatures(**wrong)
