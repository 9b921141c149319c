"""Autoencoder, denoiser and empty prompt of Stable Diffusion 2.1-base, which DiffMAC builds on.

A folder in the diffusers layout is read: `unet/`, `vae/`, `scheduler/`, `text_encoder/` and `tokenizer/`. Weights must
be safetensors in full precision. The text encoder is run once, on the empty prompt; what it says is kept as a
`PromptEmbedding` ("diffmac-prompt"), and from then on neither encoder nor tokenizer is needed.

2.1-*base* is the model for 512 px that predicts noise (equation 1 of DiffMAC). The 768-px model of the same name
predicts v, has otherwise the same shapes, and would give nonsense without any error; it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from refbfr_core.errors import WeightsError, missing_extra
from refbfr_core.models.modulation import encoder_tensors
from refbfr_core.models.prompt import PromptEmbedding
from refbfr_core.weights.assets import ASSETS
from refbfr_core.weights.diffusers_folder import (
    SAFETENSORS,
    FolderKind,
    check_settings,
    load_part,
    read_settings,
    require_finite,
    weights_file,
)
from refbfr_core.weights.published_ldm import Converted
from refbfr_core.weights.sources import SD21_BASE

PARTS: Mapping[str, str] = MappingProxyType(
    {"diffmac-unet": "unet", "diffmac-vae": "vae", "diffmac-prompt": "text_encoder"}
)
"""Which subfolder becomes which network."""
FIRST_RELEASE: Mapping[str, str] = MappingProxyType(
    {
        "unet": "6dfae3e5f7d459b50f4b0850ead945972c75bb0e1897628933e169eb43974214",
        "vae": "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
    }
)
"""SHA-256 of Stability AI's own files, as far as known: mirrors can be compared with them."""
WANTED = ASSETS["stable-diffusion-2-1-base"].patterns
"""The files of a repository that are read; it holds several times as much."""

_ADVICE = "take the folder of Stable Diffusion 2.1-base with unet, vae, scheduler, text_encoder and tokenizer."
_CURE = "DiffMAC builds on Stable Diffusion 2.1-base, the 512-px model."
_OTHER = "is another network than Stable Diffusion 2.1-base's"
_PROMPT_HOW = 'the last hidden states of the text encoder for the empty prompt "", in float32'


@dataclass(frozen=True)
class StableDiffusionLayout:
    """Settings that a folder's configurations must have; without arguments those of Stable Diffusion 2.1-base."""

    unet: Mapping[str, Any] = field(
        default_factory=lambda: MappingProxyType(
            {
                "sample_size": 64,
                "in_channels": 4,
                "out_channels": 4,
                "block_out_channels": (320, 640, 1280, 1280),
                "layers_per_block": 2,
                "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
                "cross_attention_dim": 1024,
                "attention_head_dim": (5, 10, 20, 20),
                "use_linear_projection": True,
            }
        )
    )
    vae: Mapping[str, Any] = field(
        default_factory=lambda: MappingProxyType(
            {
                "in_channels": 3,
                "out_channels": 3,
                "block_out_channels": (128, 256, 512, 512),
                "layers_per_block": 2,
                "latent_channels": 4,
                "scaling_factor": 0.18215,
                "act_fn": "silu",
            }
        )
    )
    text: Mapping[str, Any] = field(
        default_factory=lambda: MappingProxyType(
            {
                "hidden_size": 1024,
                "num_hidden_layers": 23,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "max_position_embeddings": 77,
                "hidden_act": "gelu",
                "vocab_size": 49408,
            }
        )
    )
    schedule: str = "diffmac"


SD21_LAYOUT = StableDiffusionLayout()


def part_file(folder: str | Path, part: str) -> Path:
    """The safetensors file of a subfolder. Raises `WeightsError`, which says what is there instead, if it has none."""
    name = "model.safetensors" if part == "text_encoder" else SAFETENSORS
    return weights_file(folder, part, (name,), f"{_ADVICE} Pickled or half-precision files are not read.")


def read_stable_diffusion(
    folder: str | Path, layout: StableDiffusionLayout = SD21_LAYOUT, digests: Mapping[str, str] | None = None
) -> dict[str, Converted]:
    """The networks of a folder, by their names here: "diffmac-unet", "diffmac-vae" and "diffmac-prompt".

    Parameters
    ----------
    folder : with the subfolders named above; nothing is fetched, and nothing in a file is run.
    layout : the settings that the networks must have.
    digests : SHA-256 of the weights by subfolder, where the caller has them, for a remark on where they come from.

    Raises
    ------
    WeightsError : a file is missing, truncated or damaged, a name is missing or unknown, values are not finite, or a
        configuration is another model's: another size or scale of latents, another noise schedule, or a network that
        does not predict noise. MissingExtraError : without transformers.
    """
    folder = Path(folder)
    # The settings first: they are read in no time, and gigabytes of weights are not.
    check_scheduler(folder, layout)
    files = {part: part_file(folder, part) for part in PARTS.values()}
    for part, expected in (("unet", layout.unet), ("vae", layout.vae)):
        # A setting that an old file does not name has the class's default; that is compared below.
        given = read_settings(folder / part / "config.json")
        check_settings({**expected, **given}, expected, folder / part, _OTHER, _CURE)
    unet, vae = (
        load_part(files[part], kind, _ADVICE) for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))
    )
    check_settings(unet.config, layout.unet, folder / "unet", _OTHER, _CURE)
    check_settings(vae.config, layout.vae, folder / "vae", _OTHER, _CURE)
    if (count := len(encoder_tensors(unet))) != 12:
        raise WeightsError(f"{folder / 'unet'} has {count} encoder tensors to modulate, not twelve. {_CURE}")
    prompt = empty_prompt(folder, layout)
    if prompt().shape[-1] != unet.config.cross_attention_dim:
        raise WeightsError(
            f"{folder / 'text_encoder'} gives embeddings of width {prompt().shape[-1]}, the denoiser takes "
            f"{unet.config.cross_attention_dim}: the folder is made of two models. Download it again."
        )
    made: dict[str, nn.Module] = {"diffmac-unet": unet, "diffmac-vae": vae, "diffmac-prompt": prompt}
    remarks = {name: _origin(part, (digests or {}).get(part)) for name, part in PARTS.items()}
    hows = {"diffmac-prompt": {"how": _PROMPT_HOW}}
    return {name: Converted(made[name], None, None, remarks[name], **hows.get(name, {})) for name in PARTS}


def check_scheduler(folder: str | Path, layout: StableDiffusionLayout = SD21_LAYOUT) -> None:
    """Requires that a folder's denoiser predicts noise, with the schedule of the layout; raises `WeightsError`."""
    from refbfr_core.diffusion import make_schedule

    path = Path(folder) / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise WeightsError(f"{path} is missing, and only there it is said what the denoiser predicts; {_ADVICE}")
    config = read_settings(path)
    if (came := config.get("prediction_type", "epsilon")) != "epsilon":
        raise WeightsError(
            f"the denoiser of {folder} predicts {came!r} ({path.name}), DiffMAC's predicts noise ('epsilon'). "
            "Stable Diffusion 2.1 without -base, for 768 px, predicts v; take stable-diffusion-2-1-base."
        )
    schedule = make_schedule(layout.schedule)
    expected = {**schedule.library, "num_train_timesteps": len(schedule)}
    check_settings(config, expected, path, "has another noise schedule", _CURE)


@torch.no_grad()
def empty_prompt(folder: str | Path, layout: StableDiffusionLayout = SD21_LAYOUT) -> PromptEmbedding:
    """What the text encoder of a folder says to "": (1, 77, 1024) at full size, as Stable Diffusion conditions on it.

    Start and end of text, then padding to the full length; no position is masked.

    Raises
    ------
    WeightsError : the encoder or the tokenizer is missing, damaged or another model's. MissingExtraError : without
        transformers.
    """
    try:
        from transformers import CLIPTextModel
    except ImportError as error:
        raise missing_extra("transformers", "prompts", "the empty prompt of Stable Diffusion") from error
    place = Path(folder) / "text_encoder"
    config = read_settings(place / "config.json")
    check_settings(config, layout.text, place, _OTHER, _CURE)
    encoder = load_part(part_file(folder, "text_encoder"), CLIPTextModel, _ADVICE, "dtype")
    tokens = empty_prompt_tokens(folder, encoder.config.max_position_embeddings)
    if int(tokens.max()) >= encoder.config.vocab_size:
        raise WeightsError(
            f"{Path(folder) / 'tokenizer'} has token {int(tokens.max())}, the text encoder knows "
            f"{encoder.config.vocab_size}: the folder is made of two models. Download it again."
        )
    embedding = encoder(tokens)[0]
    require_finite({"embedding": embedding}, "empty prompt: ")
    return PromptEmbedding.of(embedding).eval()


def empty_prompt_tokens(folder: str | Path, length: int) -> Tensor:
    """Tokens (1, length) of "": start, end, padding.

    Stable Diffusion 2 pads with "!", token 0, as OpenCLIP does. That is said in `special_tokens_map.json`, while
    `tokenizer_config.json` names the end of text; which of them a library believes has changed over time, so the first
    is asked here.

    Raises WeightsError for a tokenizer that is missing or damaged, and MissingExtraError without transformers.
    """
    try:
        from transformers import CLIPTokenizer
    except ImportError as error:
        raise missing_extra("transformers", "prompts", "the empty prompt of Stable Diffusion") from error
    place = Path(folder) / "tokenizer"
    missing = [name for name in ("vocab.json", "merges.txt", "special_tokens_map.json") if not (place / name).is_file()]
    if missing:
        raise WeightsError(f"{place} lacks {', '.join(missing)}; {_ADVICE}")
    padding = read_settings(place / "special_tokens_map.json").get("pad_token")
    padding = padding.get("content") if isinstance(padding, dict) else padding
    if not isinstance(padding, str):
        raise WeightsError(f"{place / 'special_tokens_map.json'} names no pad_token. Download the folder again.")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(
            place.parent, subfolder=place.name, local_files_only=True, pad_token=padding
        )
        vocabulary = read_settings(place / "vocab.json")
        expected = [vocabulary[token] for token in ("<|startoftext|>", "<|endoftext|>", padding)]
        tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    except WeightsError:
        raise
    except Exception as error:  # noqa: BLE001  the tokenizers library raises nothing narrower
        raise WeightsError(f"{place} cannot be read ({str(error)[:200]}). Download the folder again.") from error
    if tokens.tolist() != [expected[:2] + expected[2:] * (length - 2)]:
        raise WeightsError(
            f"the tokenizer in {place} makes {tokens[0, :4].tolist()}... of the empty prompt, expected "
            f"{[*expected, expected[2]]}...: start, end, padding. Install another version of transformers, or "
            "download the folder again."
        )
    return tokens


def stable_diffusion_folder(source: str | Path = SD21_BASE.url, *, download: bool = False) -> Path:
    """A folder on this machine: `source` itself, or what the Hugging Face hub's cache holds of a repository.

    Parameters
    ----------
    source : a folder, or a repository as "owner/name" or by its address; default the registry's.
    download : fetch what is missing, about 5.2 GB, from the hub. Whoever asks for it accepts the licence that the
        registry names.

    Raises
    ------
    WeightsError : neither a folder nor in the cache, or the hub does not give it.
    """
    if Path(source).is_dir():
        return Path(source)
    name = str(source).removeprefix("https://huggingface.co/").strip("/")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise WeightsError(f"{source} is neither a folder nor a repository 'owner/name' of the hub; {_ADVICE}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED), local_files_only=not download))
    except LocalEntryNotFoundError as error:
        reason = "the hub cannot be reached" if download else "nothing is fetched unasked (download=True asks)"
        words = f"{name} is neither a folder nor in the hub's cache here, and {reason}. {_gone(name)}"
        raise WeightsError(words) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"the hub does not give {name} ({first[:200]}). {_gone(name)}") from error


def _gone(name: str) -> str:
    taken = "Stability AI took its page down in November 2025. " if name.startswith("stabilityai/") else ""
    return f"{taken}Known mirror: {SD21_BASE.page} (licence: {SD21_BASE.licence})."


def _origin(part: str, digest: str | None) -> tuple[str, ...]:
    """A remark on whether a file is the one that Stability AI released."""
    if digest is None or part not in FIRST_RELEASE:
        return ()
    if digest == FIRST_RELEASE[part]:
        return ("byte for byte the file that Stability AI released",)
    return ("not the file that Stability AI released, by its SHA-256: another precision, names, or a further training",)


FOLDER = FolderKind(PARTS, ("vae", "text_encoder", "tokenizer"), part_file, read_stable_diffusion, SD21_BASE)
"""A folder such as `stable-diffusion-2-1-base`, for the import; a folder `unet` other diffusions have as well."""
