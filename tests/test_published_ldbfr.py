"""theta_1 and VQ-O of LD-BFR from public files in both layouts: whole or not at all, and what nobody has released."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from released_files import SMALL
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from refbfr_core.cli.app import app
from refbfr_core.errors import WeightsError
from refbfr_core.models.injected_unet import HQInjection, denoise_injected
from refbfr_core.models.ldbfr_full_size import count_parameters, full_size_networks
from refbfr_core.weights import NETWORKS, import_published, imported_from, load_network, read_card, save_network
from refbfr_core.weights.convert import convert_ldm_unet, convert_ldm_vq
from refbfr_core.weights.published_files import file_digest
from refbfr_core.weights.published_ldbfr import (
    LDM_LAYOUT,
    looks_like_ldm,
    read_ldm_unet,
    read_ldm_vq,
    read_pipeline_folder,
    with_tail,
)
from refbfr_core.weights.published_ldm import FIRST_STAGE, LIVE, ReleasedLayout, average_name, looks_like_refldm
from refbfr_core.weights.published_sample import sample_ldm, sample_refldm
from refbfr_core.weights.sources import LDM_CELEBAHQ, LDM_FFHQ

TINY = ReleasedLayout(
    unet={**SMALL.unet, "in_channels": 3, "out_channels": 3},
    vq={**SMALL.vq, "z_channels": 3},
    n_embed=64,
    embed_dim=3,
    file=LDM_LAYOUT.file,
    owner=LDM_LAYOUT.owner,
    schedule=LDM_LAYOUT.schedule,
)
NAMES = ["ldbfr-unet", "ldbfr-vqo"]
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def networks(seed: int = 0):
    """The stock networks of a sample, denoiser from its average."""
    state = sample_ldm(TINY, seed)
    stage = {name.removeprefix(FIRST_STAGE): x for name, x in state.items() if name.startswith(FIRST_STAGE)}
    average = {name: state[average_name(name)] for name in TINY.unet_shapes()}
    return convert_ldm_unet(average, TINY.unet), convert_ldm_vq(stage, TINY.vq, TINY.n_embed, TINY.embed_dim)


def write_checkpoint(folder: Path, change=lambda state: None, seed: int = 0) -> Path:
    """`model.ckpt` as a training framework leaves it."""
    state = sample_ldm(TINY, seed)
    change(state)
    torch.save({"epoch": 3, "global_step": 635_000, "state_dict": state}, folder / "model.ckpt")
    return folder / "model.ckpt"


def write_folder(folder: Path, *, old: bool = True, seed: int = 0) -> Path:
    """A folder in the diffusers layout: old attention names in PyTorch files, or new ones in safetensors."""
    for part, network in zip(("unet", "vqvae"), networks(seed), strict=True):
        (folder / part).mkdir(parents=True)
        network.save_config(folder / part)
        state = network.state_dict()
        if old:
            torch.save({_old(name): x for name, x in state.items()}, folder / part / "diffusion_pytorch_model.bin")
        else:
            save_file(state, folder / part / "diffusion_pytorch_model.safetensors")
    # As the class writes it where nobody sets it; LD-BFR's latents are not scaled.
    change_config(folder / "vqvae" / "config.json", scaling_factor=0.18215)
    settings = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear", "clip_sample": False}
    DDIMScheduler(**settings).save_pretrained(folder / "scheduler")
    return folder


def _old(name: str) -> str:
    for new, before in OLD.items():
        if "attentions" in name:
            name = name.replace(f".{new}.", f".{before}.")
    return name


def change_config(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def take(files, root, **options):
    return import_published(files, **({"accept": lambda published: True, "root": root, "ldm": TINY} | options))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("ffhq"))


@pytest.fixture(scope="module")
def imported(checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("weights") / "paper"
    return root, take([checkpoint], root)


@pytest.fixture(scope="module")
def old_folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("hub") / "ldm-celebahq-256")


# --- the latent diffusion code base's file ----------------------------------------------------------------------------


@torch.no_grad()
def test_one_file_becomes_both_networks_with_the_same_values(checkpoint, imported):
    root, made = imported
    assert [(one.name, one.fresh, one.source) for one in made] == [(name, True, checkpoint) for name in NAMES]
    unet, vq = networks()
    loaded = [load_network(name, profile="paper", device="cpu", root=root) for name in NAMES]
    assert [type(network).__name__ for network in loaded] == ["UNet2DModel", "OutputVQModel"]
    assert _same(loaded[0].state_dict(), unet.state_dict())
    assert _same({name: loaded[1].state_dict()[name] for name in vq.state_dict()}, vq.state_dict())
    assert (loaded[1].config.scaling_factor, loaded[1].config.tail_layers) == (1.0, 1)
    assert "exponential moving average" in made[0].remarks[0] and "has no tail" in made[1].remarks[0]
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(loaded[0](x, 7).sample, unet(x, 7).sample)
    injectors = HQInjection.for_network(loaded[0], 16, 4, levels=(2,)).eval()
    with_injectors = denoise_injected(loaded[0], x, 7, injectors, torch.randn(1, 16, 4, 4))
    assert torch.equal(with_injectors, unet(x, 7).sample)


def _same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


def test_cards_say_what_the_file_was_trained_on(checkpoint, imported, old_folder, tmp_path):
    asked = []
    take([old_folder], tmp_path, accept=lambda published: asked.append(published) or True)
    assert asked == [LDM_CELEBAHQ]
    for root, published, file in (
        (imported[0], LDM_FFHQ, checkpoint),
        (tmp_path, LDM_CELEBAHQ, old_folder / "unet" / "diffusion_pytorch_model.bin"),
    ):
        card = read_card(root / "ldbfr-unet")["card"]
        assert card["source"]["sha256"] == file_digest(file) and card["source"]["page"] == published.page
        assert published.licence in card["licence"] and card["limits"] == published.note
    assert card["source"]["file"] == "ldm-celebahq-256/unet/diffusion_pytorch_model.bin"
    assert "CelebA-Test are contaminated" in card["limits"]
    assert "## Limits" in (tmp_path / "ldbfr-unet" / "CARD.md").read_text()


def test_without_an_average_the_last_weights_are_used_and_said_to_be(tmp_path):
    state = {name: x for name, x in sample_ldm(TINY).items() if not name.startswith("model_ema.")}
    with pytest.warns(UserWarning, match=r"model\.ckpt holds no averaged weights"):
        made = read_ldm_unet(state, TINY)
    live = {name: state[LIVE + name] for name in TINY.unet_shapes()}
    assert made.averaged is False and _same(made.network.state_dict(), convert_ldm_unet(live, TINY.unet).state_dict())


def _drop(name):
    return lambda state: state.pop(name)


def _rename(name):
    return lambda state: state.update({name + "s": state.pop(name)})


def _cut(name):
    return lambda state: state.update({name: state[name][1:]})


def _spoil(name):
    return lambda state: state.update({name: torch.full_like(state[name], float("nan"))})


_Q, _STAGE = "input_blocks.3.1.qkv.weight", f"{FIRST_STAGE}decoder.mid.attn_1.q.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_drop(LIVE + _Q), "missing"),
        (_rename(LIVE + _Q), "missing.*superfluous"),
        (_cut(LIVE + _Q), "wrong shape"),
        (_drop(average_name(_Q)), "model_ema.*missing"),
        (_spoil(average_name(_Q)), "NaN"),
        (_drop(_STAGE), "first_stage_model.*missing"),
        (_rename(_STAGE), "missing.*superfluous"),
        (_cut(_STAGE), "wrong shape"),
        (_spoil(_STAGE), "NaN"),
        (lambda s: [s.pop(name) for name in list(s) if name.startswith(FIRST_STAGE)], "no VQGAN"),
        (lambda s: s.update(betas=s["betas"] * 0.9), "noise schedule in model.ckpt is not"),
        (lambda s: s.update({"cond_stage_model.lq_image.a": torch.zeros(1)}), "conditional"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra"),
    ],
)
def test_a_damaged_checkpoint_is_refused_whole(tmp_path, change, says):
    path = write_checkpoint(tmp_path, change)
    with pytest.raises(WeightsError, match=f"(?s){says}"):
        take([path], tmp_path / "paper")
    assert [each.name for each in (tmp_path / "paper").iterdir()] == [".import.lock"]


def test_a_truncated_checkpoint_is_refused(checkpoint, tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(checkpoint.read_bytes()[: -checkpoint.stat().st_size // 3])
    with pytest.raises(WeightsError, match="truncated"):
        take([path], tmp_path / "paper")


def test_it_is_not_mistaken_for_the_other_latent_diffusion():
    ldm, refldm = sample_ldm(TINY), sample_refldm(SMALL)
    assert looks_like_refldm(ldm) and looks_like_ldm(ldm) and not looks_like_ldm(refldm)
    for name in (LIVE + "input_blocks.0.0.weight", FIRST_STAGE + "quantize.embedding.weight"):
        assert looks_like_ldm({key: x for key, x in ldm.items() if key != name})


# --- the diffusers layout ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [True, False])
def test_a_folder_gives_the_networks_it_was_made_of(tmp_path, old):
    made = read_pipeline_folder(write_folder(tmp_path / "hub", old=old), TINY)
    unet, vq = networks()
    assert list(made) == NAMES
    assert _same(made["ldbfr-unet"].network.state_dict(), unet.state_dict())
    vqo = made["ldbfr-vqo"].network
    assert _same({name: vqo.state_dict()[name] for name in vq.state_dict()}, vq.state_dict())
    assert vqo.config.scaling_factor == 1.0 and not vqo.training
    assert not any(p.is_meta for network in made.values() for p in network.network.parameters())


def _in(part, change):
    """Change the tensors of a subfolder, in either kind of file."""

    def apply(folder: Path) -> None:
        path = next((folder / part).glob("diffusion_pytorch_model.*"))
        state = torch.load(path, weights_only=True) if path.suffix == ".bin" else load_file(path)
        change(state)
        torch.save(state, path) if path.suffix == ".bin" else save_file(state, path)

    return apply


def _truncate(part):
    def apply(folder: Path) -> None:
        path = next((folder / part).glob("diffusion_pytorch_model.*"))
        path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])

    return apply


class _Intruder:
    def __reduce__(self):
        return print, ("this must never be printed",)


_K = "down_blocks.1.attentions.0.{}.weight"


@pytest.mark.parametrize("old", [True, False], ids=["old names", "new names"])
@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("unet", lambda key: _drop(_K.format(key)), "missing"),
        ("unet", lambda key: _rename(_K.format(key)), "missing|unexpected"),
        ("unet", lambda key: _cut(_K.format(key)), "cannot be loaded"),
        ("unet", lambda key: _spoil(_K.format(key)), "NaN"),
        ("unet", lambda key: lambda s: s.update(extra=torch.zeros(1)), "1 unexpected keys .extra"),
        ("vqvae", lambda key: _drop(f"decoder.mid_block.attentions.0.{key}.weight"), "missing"),
        ("vqvae", lambda key: _cut("quantize.embedding.weight"), "cannot be loaded"),
        ("vqvae", lambda key: _rename("quant_conv.bias"), "missing|unexpected"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, capfd, part, change, says, old):
    folder = write_folder(tmp_path / "hub", old=old)
    _in(part, change("key" if old else "to_k"))(folder)
    with pytest.raises(WeightsError, match=f"(?s){part}.*({says})" if says != "NaN" else says):
        take([folder], tmp_path / "paper")
    assert [each.name for each in (tmp_path / "paper").iterdir()] == [".import.lock"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_truncate("unet"), "truncated|cannot be loaded"),
        (_truncate("vqvae"), "truncated|cannot be loaded"),
        (lambda f: next((f / "unet").glob("diffusion*")).unlink(), "has neither"),
        (lambda f: (f / "vqvae" / "config.json").unlink(), "cannot be read"),
        (lambda f: (f / "unet" / "config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "unet" / "config.json").write_text("[]"), "holds a list"),
        (lambda f: change_config(f / "vqvae" / "config.json", _class_name="AutoencoderKL"), "not a VQModel"),
        (lambda f: change_config(f / "unet" / "config.json", sample_size=32), "sample_size.*32.*expected.*16"),
        (lambda f: change_config(f / "unet" / "config.json", attention_head_dim=8), "attention_head_dim"),
        (lambda f: change_config(f / "vqvae" / "config.json", act_fn="relu"), "act_fn"),
        (lambda f: change_config(f / "scheduler" / "scheduler_config.json", beta_end=0.012), "noise schedule"),
    ],
)
@pytest.mark.parametrize("old", [True, False], ids=["torch", "safetensors"])
def test_damaged_folders_are_refused(tmp_path, change, says, old):
    folder = write_folder(tmp_path / "hub", old=old)
    change(folder)
    with pytest.raises(WeightsError, match=f"(?s){says}"):
        take([folder], tmp_path / "paper")
    assert [each.name for each in (tmp_path / "paper").iterdir()] in ([".import.lock"], [])


def test_nothing_in_a_file_is_run(tmp_path, capfd):
    folder = write_folder(tmp_path / "hub")
    torch.save({"conv_in.weight": _Intruder()}, folder / "unet" / "diffusion_pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(WeightsError, match="refused"):
        read_pipeline_folder(folder, TINY)
    assert "this must never be printed" not in "".join(capfd.readouterr())


# --- the tail ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_new_tail_enlarges_the_features_it_is_given():
    _, vq = networks()
    vqo, seen, latents = with_tail(vq), [], torch.randn(1, 3, 8, 8)
    for network in (vq, vqo):
        network.decoder.conv_norm_out.register_forward_pre_hook(lambda module, came: seen.append(came[0]))
    small, large = (network.decode(latents).sample for network in (vq, vqo))
    assert torch.equal(seen[1], F.interpolate(seen[0], scale_factor=2.0))
    assert (small.shape[-1], large.shape[-1]) == (16, 32)
    assert torch.equal(vqo.encode(torch.ones(1, 3, 16, 16)).latents, vq.encode(torch.ones(1, 3, 16, 16)).latents)
    assert not {p.data_ptr() for p in vq.parameters()} & {p.data_ptr() for p in vqo.parameters()}
    tail = vqo.decoder.up_blocks[-1]
    assert all(bool(p.abs().sum()) for p in tail.resnets[0].conv1.parameters())  # the rest is as PyTorch draws it
    assert _same(with_tail(vq).state_dict(), vqo.state_dict())


# --- more than once ---------------------------------------------------------------------------------------------------


def test_a_second_import_finds_the_first_and_finishes_a_half_one(checkpoint, tmp_path):
    root = tmp_path / "paper"
    take([checkpoint], root)
    assert [(one.name, one.fresh) for one in take([checkpoint], root)] == [(name, False) for name in NAMES]
    (root / "ldbfr-vqo" / "config.json").unlink()
    assert all(one.fresh for one in take([checkpoint], root))
    assert load_network("ldbfr-vqo", profile="paper", device="cpu", root=root)


def test_another_model_takes_its_place_only_when_told(checkpoint, old_folder, tmp_path):
    root = tmp_path / "paper"
    take([checkpoint], root)
    with pytest.raises(WeightsError, match=r"is not the file that ldbfr-unet was imported from .*--replace"):
        take([old_folder], root)
    with pytest.raises(WeightsError, match="several files hold ldbfr-unet"):
        take([checkpoint, old_folder], tmp_path / "other")
    assert all(one.fresh for one in take([old_folder], root, replace=True))
    assert all(imported_from(name, root)["page"] == LDM_CELEBAHQ.page for name in NAMES)
    assert not any(one.fresh for one in take([old_folder], root))


def test_nothing_is_written_unless_the_licence_is_accepted(checkpoint, old_folder, tmp_path):
    for path, words in ((checkpoint, "none stated"), (old_folder, "Apache-2.0")):
        with pytest.raises(WeightsError, match=f"licence of .*{words}.* was not accepted"):
            take([path], tmp_path, accept=lambda published: False)
    assert [each.name for each in tmp_path.iterdir()] == [".import.lock"]


# --- full size, and what nobody has released --------------------------------------------------------------------------


def test_full_size_counts_from_the_released_layout():
    state = sample_ldm(device="meta")
    full = full_size_networks()
    for read, own, count in ((read_ldm_unet, full.unet, 274_056_163), (read_ldm_vq, full.vqo, 55_766_046)):
        network = read(state).network
        assert count_parameters(network) == count
        shapes = {name: tuple(x.shape) for name, x in network.state_dict().items()}
        assert shapes == {name: tuple(x.shape) for name, x in own.state_dict().items()}


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("ldbfr-") and name not in NAMES])
def test_what_nobody_has_released_says_so(name, tmp_path, monkeypatch):
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        load_network(name, profile="paper")
    for part in ("authors released no weights", f"refbfr train {name}", "root=", str(tmp_path / "paper")):
        assert part in str(caught.value)


def test_one_s_own_injection_may_stand_beside_the_imported_networks(imported, tmp_path, monkeypatch):
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path))
    unet = load_network("ldbfr-unet", profile="paper", device="cpu", root=imported[0])
    own = HQInjection.for_network(unet, 16, 4, levels=(2,))
    card = {"summary": "own", "training_data": "none", "recipe": {"steps": 0}}
    save_network(own, "ldbfr-hqi-d", tmp_path / "paper", card, torch.float32)
    loaded = load_network("ldbfr-hqi-d", profile="paper", device="cpu")
    assert _same(loaded.state_dict(), own.state_dict())


def test_messages_and_the_list_name_both_sources_and_what_is_wrong_with_them(tmp_path, monkeypatch):
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        load_network("ldbfr-unet", profile="paper")
    listed = CliRunner().invoke(app, ["weights", "list"]).stdout
    for text in (str(caught.value), listed):
        for part in (LDM_FFHQ.page, LDM_FFHQ.note, LDM_CELEBAHQ.page, LDM_CELEBAHQ.note, "Apache-2.0"):
            assert part in text
    assert "refbfr weights import model.ckpt." in str(caught.value) and LDM_FFHQ.url in str(caught.value)
    assert listed.count("nothing to import, LD-BFR's authors released no weights") == 7
