"""Reference mechanisms: what equals the plain network and what does not, gradients, masks, bad input, files."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import UNet2DModel

from refbfr_core.errors import CacheError, ConfigError, UnknownNameError, WeightsError
from refbfr_core.models import ReferenceCache, denoise
from refbfr_core.models.mechanisms import MECHANISMS, load_mechanism, make_mechanism, save_mechanism

WITH_REFERENCES = [name for name in MECHANISMS if name != "none"]
ADDED = {"channel": "unet.conv_in.weight", "cross": "to_out"}


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(3)
    made = UNet2DModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return made.eval().requires_grad_(False)


def inputs(people=2, references=3, rows=None):
    generator = torch.Generator().manual_seed(5)
    sample = torch.randn(rows or people, 8, 8, 8, generator=generator)
    return sample, torch.randn(people, references, 4, 8, 8, generator=generator)


def woken(name, unet, **options):
    """The mechanism with its zero-initialised weights moved, as after some training."""
    made = make_mechanism(name, unet, **options)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, value in made.named_parameters():
            if name in ADDED and ADDED[name] in key:
                value += 0.1 * torch.randn(value.shape, generator=generator)
    return made.eval()


def outcome(made, sample, references, mask=None, t=300):
    with torch.no_grad():
        return made(sample, t, made.prepare(references, mask))


@pytest.mark.parametrize("name", list(MECHANISMS))
def test_without_references_every_fresh_mechanism_is_the_plain_network(name, unet):
    sample, references = inputs()
    made = make_mechanism(name, unet)
    plain = unet(sample, 300).sample
    exact = name != "channel"  # zero channels change the order of the sums in the first convolution
    for nothing in (None, made.prepare(None), made.prepare(references[:, :0])):
        with torch.no_grad():
            got = made(sample, 300, nothing)
        assert torch.equal(got, plain) if exact else torch.allclose(got, plain, atol=1e-5)
    masked = outcome(made, sample, references, torch.zeros(2, 3, dtype=torch.bool))
    assert torch.allclose(masked, plain, atol=1e-5)


@pytest.mark.parametrize("name", ["none", "channel", "cross"])
def test_added_weights_start_at_zero_so_references_change_nothing_yet(name, unet):
    sample, references = inputs()
    assert torch.allclose(outcome(make_mechanism(name, unet), sample, references), unet(sample, 300).sample, atol=1e-5)


@pytest.mark.parametrize("name", WITH_REFERENCES)
def test_references_matter_afterwards(name, unet):
    sample, references = inputs()
    made = woken(name, unet)
    first = outcome(made, sample, references)
    changed = references.clone()
    changed[0, 2] += 1.0
    second = outcome(made, sample, changed)
    assert (first[0] - second[0]).abs().max() > 1e-4
    assert torch.allclose(first[1], second[1], atol=1e-6), "another person's reference"
    assert (first - outcome(made, sample, None)).abs().max() > 1e-4


def test_cachekv_is_the_reference_cache(unet):
    sample, references = inputs()
    made = make_mechanism("cachekv", unet)
    direct = denoise(unet, sample, 300, ReferenceCache.build(unet, references))
    assert torch.allclose(outcome(made, sample, references), direct, atol=1e-5)


def test_spatial_is_one_pass_over_the_strip(unet):
    sample, references = inputs(references=2)
    blank = torch.zeros(2, 4, 8, 8)
    squares = [torch.cat([references[:, i], blank], 1) for i in range(2)]
    strip = unet(torch.cat([sample, *squares], 3), 300).sample
    assert strip.shape[-2:] == (8, 24)
    assert torch.allclose(outcome(make_mechanism("spatial", unet), sample, references), strip[..., :8], atol=1e-6)


def test_channels_lie_behind_the_sample_in_order(unet):
    sample, references = inputs(references=2)
    made = woken("channel", unet, max_references=3)
    joined = torch.cat([sample, references[:, 0], references[:, 1], torch.zeros(2, 4, 8, 8)], 1)
    assert torch.allclose(outcome(made, sample, references), made.unet(joined, 300).sample, atol=1e-6)


@pytest.mark.parametrize("name", ["cachekv", "cross"])
def test_references_are_a_set(name, unet):
    sample, references = inputs()
    made = woken(name, unet)
    shuffled = outcome(made, sample, references[:, [2, 0, 1]])
    assert torch.allclose(outcome(made, sample, references), shuffled, atol=1e-5)


@pytest.mark.parametrize("name", WITH_REFERENCES)
def test_a_masked_reference_changes_nothing_whatever_it_holds(name, unet):
    sample, references = inputs()
    made = woken(name, unet)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    dirty = references.clone()
    dirty[~mask] = float("nan")
    masked = outcome(made, sample, dirty, mask, t=torch.tensor([300, 100]))
    assert torch.allclose(masked[:1], outcome(made, sample[:1], references[:1, :2]), atol=1e-5)
    assert torch.allclose(masked[1:], outcome(made, sample[1:], None, t=100), atol=1e-5)


@pytest.mark.parametrize("name", WITH_REFERENCES)
def test_one_preparation_serves_several_rows_of_a_person(name, unet):
    sample, references = inputs(rows=4)
    made = woken(name, unet)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    times = torch.tensor([10, 400, 700, 900])
    with torch.no_grad():
        shared = made(sample, times, made.prepare(references, mask).repeat_interleave(2))
    copies = outcome(made, sample, references.repeat_interleave(2, 0), mask.repeat_interleave(2, 0), times)
    assert torch.allclose(shared, copies, atol=1e-5)


@pytest.mark.parametrize("name", WITH_REFERENCES)
def test_gradients_reach_references_and_weights(name, unet):
    sample, references = inputs()
    made = woken(name, unet).requires_grad_(True)
    references.requires_grad_(True)
    made(sample, 300, made.prepare(references)).square().mean().backward()
    assert (references.grad.flatten(2).abs().sum(2) > 0).all()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in made.parameters())


@pytest.mark.parametrize("name", sorted(ADDED))
def test_zero_initialised_weights_have_a_gradient_at_once(name, unet):
    sample, references = inputs()
    made = make_mechanism(name, unet).requires_grad_(True)
    made(sample, 300, made.prepare(references)).square().mean().backward()
    moved = [value for key, value in made.named_parameters() if ADDED[name] in key and value.ndim > 1]
    assert moved and all(value.grad.abs().max() > 0 for value in moved)


@pytest.mark.parametrize("name", WITH_REFERENCES)
def test_nothing_stays_in_the_network(name, unet):
    sample, references = inputs()
    made = woken(name, unet)
    before = outcome(made, sample, None)
    outcome(made, sample, references)
    assert torch.equal(before, outcome(made, sample, None))


def test_the_network_is_copied_and_global_randomness_untouched(unet):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    made = make_mechanism("cross", unet)
    assert torch.equal(torch.rand(3), expected)
    with torch.no_grad():
        made.unet.conv_in.weight.add_(1)
    assert not torch.equal(made.unet.conv_in.weight, unet.conv_in.weight)
    again = make_mechanism("cross", unet)
    assert torch.equal(again.project.weight, made.project.weight), "added weights depend on the seed only"


def test_bad_input_is_refused_with_its_cure(unet):
    sample, references = inputs()
    with pytest.raises(UnknownNameError, match="cross"):
        make_mechanism("crosss", unet)
    with pytest.raises(ConfigError, match="UNet2DModel from 2C to C"):
        make_mechanism("none", torch.nn.Conv2d(8, 4, 3))
    with pytest.raises(ConfigError, match="at least 1"):
        make_mechanism("channel", unet, max_references=0)
    with pytest.raises(ConfigError, match=r"3 references came, this network takes 2.*max_references"):
        make_mechanism("channel", unet, max_references=2).prepare(references)
    made = make_mechanism("spatial", unet)
    with pytest.raises(CacheError, match=r"\[None\]"):
        made.prepare(references[0])
    with pytest.raises(CacheError, match="mask must be bool"):
        made.prepare(references, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(CacheError, match="repeat_interleave"):
        made(sample[:1], 300, made.prepare(references))
    with pytest.raises(CacheError, match="k >= 1"):
        made.prepare(references).repeat_interleave(0)
    with pytest.raises(CacheError, match="another network"):
        made(sample, 300, make_mechanism("spatial", unet).prepare(references))
    with pytest.raises(CacheError, match="same size"):
        made(sample[..., :4], 300, made.prepare(references))
    with pytest.raises(CacheError, match="learned positions"):
        make_mechanism("cross", unet).prepare(references[..., :4])


@pytest.mark.parametrize("name", list(MECHANISMS))
def test_files_come_back_exactly(name, unet, tmp_path):
    sample, references = inputs(references=2)
    made = woken(name, unet, max_references=2)
    save_mechanism(made, tmp_path / name, {"steps": 3})
    loaded = load_mechanism(tmp_path / name)
    assert loaded.name == name and not any(weight.requires_grad for weight in loaded.parameters())
    assert torch.equal(outcome(made, sample, references), outcome(loaded, sample, references))


def test_damaged_files_are_refused(unet, tmp_path):
    folder = save_mechanism(make_mechanism("cross", unet), tmp_path / "cross", {})
    with pytest.raises(WeightsError, match="refldm-mechanism"):
        load_mechanism(tmp_path)
    about = json.loads((folder / "mechanism.json").read_text())
    (folder / "mechanism.json").write_text(json.dumps(about | {"mechanism": "cachekv"}))
    with pytest.raises(WeightsError, match="do not fit"):
        load_mechanism(folder)
    with (folder / "mechanism.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(WeightsError, match="altered"):
        load_mechanism(folder)
