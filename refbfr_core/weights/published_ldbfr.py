"""theta_1 and VQ-O of LD-BFR from public files: the unconditional latent diffusion models of faces, f4 and 64 x 64.

LD-BFR's authors released no weights. Their unconditional network is the FFHQ model of the latent diffusion code base,
which is public, and their output VQGAN is its first stage with a tail that they trained. Two layouts are read:

* `model.ckpt` of the latent diffusion code base: `model.diffusion_model.` (and its average under `model_ema.`),
  `first_stage_model.`, twelve buffers of the schedule. The FFHQ model exists in this layout only.
* a folder in the diffusers layout with `unet/`, `vqvae/` and `scheduler/`, such as `CompVis/ldm-celebahq-256`. Its
  attention layers have their old names (query, key, value, proj_attn), which diffusers knows.

The same topology was trained on both collections. CelebA-HQ contains the photographs that CelebA-Test is made of, so
with the second one results on CelebA-Test are those of a network that may have seen the answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers import UNet2DModel, VQModel
from torch import Tensor, nn

from refbfr_core.errors import WeightsError
from refbfr_core.models.output_vq import OutputVQModel
from refbfr_core.weights.convert_ldm import convert_ldm_vq
from refbfr_core.weights.convert_strict import first_few
from refbfr_core.weights.diffusers_folder import (
    PICKLED,
    SAFETENSORS,
    FolderKind,
    check_settings,
    load_part,
    read_settings,
    require_finite,
    weights_file,
)
from refbfr_core.weights.published_files import tensors_digest
from refbfr_core.weights.published_ldm import (
    CONDITIONS,
    FIRST_STAGE,
    LEFT_OUT,
    LIVE,
    Converted,
    ReleasedLayout,
    average_name,
    looks_like_refldm,
    read_refldm,
)
from refbfr_core.weights.sources import LDM_CELEBAHQ

LDM_LAYOUT = ReleasedLayout(
    unet=MappingProxyType(
        {
            "image_size": 64,
            "in_channels": 3,
            "out_channels": 3,
            "model_channels": 224,
            "channel_mult": (1, 2, 3, 4),
            "attention_resolutions": (2, 4, 8),
            "num_res_blocks": 2,
            "num_head_channels": 32,
        }
    ),
    vq=MappingProxyType(
        {
            "resolution": 256,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 128,
            "ch_mult": (1, 2, 4),
            "num_res_blocks": 2,
            "z_channels": 3,
        }
    ),
    n_embed=8192,
    embed_dim=3,
    file="model.ckpt",
    owner="the latent diffusion code base",
    schedule="ldbfr",
)
"""Both public models: 274,056,163 parameters in the denoiser, 55,322,782 in the VQGAN without a tail."""

PARTS: Mapping[str, str] = MappingProxyType({"ldbfr-unet": "unet", "ldbfr-vqo": "vqvae"})
"""Which subfolder of the diffusers layout becomes which network."""
_CLASSES: Mapping[str, type] = MappingProxyType({"unet": UNet2DModel, "vqvae": VQModel})
_TAIL = (
    "the file has no tail: its new layers start as a plain enlargement of the decoder's last features; train them "
    "with `refbfr train ldbfr-vqo` before judging sharpness"
)


def looks_like_ldm(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dictionary is that of an unconditional face model of latent diffusion, damaged or not."""
    first = "input_blocks.0.0.weight"
    widths = ((LIVE + first, 1), (average_name(first), 1), (LIVE + "out.2.weight", 0))
    widths += ((f"{FIRST_STAGE}quantize.embedding.weight", 1),)
    # ReF-LDM's file has the same names, but its latents have 8 channels, and its input 16.
    found = [state[name].shape[axis] for name, axis in widths if name in state and state[name].ndim > axis]
    return looks_like_refldm(state) and 3 in found


def read_ldm_unet(state: Mapping[str, Tensor], layout: ReleasedLayout = LDM_LAYOUT) -> Converted:
    """The denoiser of `model.ckpt`, float32 in eval mode, from averaged weights where there are some.

    Raises
    ------
    WeightsError : a name too many, a part that is not there or not whole, wrong shapes, values that are not finite, or
        another noise schedule; the message names the first few.
    """
    _check_parts(state, layout)
    return read_refldm(state, layout)


def read_ldm_vq(state: Mapping[str, Tensor], layout: ReleasedLayout = LDM_LAYOUT) -> Converted:
    """The first stage of `model.ckpt` as the output VQGAN, with an untrained tail. Raises as `read_ldm_unet`."""
    _check_parts(state, layout)
    stage = {name.removeprefix(FIRST_STAGE): x for name, x in state.items() if name.startswith(FIRST_STAGE)}
    require_finite(stage, FIRST_STAGE)
    network = with_tail(convert_ldm_vq(stage, layout.vq, layout.n_embed, layout.embed_dim))
    digest = None if any(tensor.is_meta for tensor in stage.values()) else tensors_digest(stage)
    return Converted(network, None, digest, (_TAIL,))


def read_pipeline_folder(folder: str | Path, layout: ReleasedLayout = LDM_LAYOUT) -> dict[str, Converted]:
    """Both networks of a folder in the diffusers layout, by their names here.

    Parameters
    ----------
    folder : with `unet/`, `vqvae/` and, if it is there, `scheduler/`; each has a configuration, the first two weights
        as safetensors or as tensors in a PyTorch file. Nothing is fetched, and nothing in a file is run.
    layout : the sizes that the networks must have.

    Raises
    ------
    WeightsError : a file is missing, truncated or damaged, a name is missing or unknown, a shape is another one, values
        are not finite, or the configuration or the noise schedule is another network's.
    """
    folder = Path(folder)
    remarks = [_check_scheduler(folder, layout)]
    unet = _load(folder, "unet")
    _check_sizes(unet, _unet_sizes(layout), folder / "unet")
    vq = _load(folder, "vqvae")
    _check_sizes(vq, _vq_sizes(layout), folder / "vqvae")
    digest = tensors_digest(vq.state_dict())
    remarks.append("whether these weights are an average is not said where they come from")
    return {
        "ldbfr-unet": Converted(unet, None, digest, tuple(remark for remark in remarks if remark)),
        "ldbfr-vqo": Converted(with_tail(vq), None, digest, (_TAIL,)),
    }


def part_file(folder: str | Path, part: str) -> Path:
    """The file with the weights of a subfolder, safetensors before PyTorch. Raises `WeightsError` if it has none."""
    advice = f"download the whole folder, with {' and '.join(PARTS.values())}."
    return weights_file(folder, part, (SAFETENSORS, PICKLED), advice)


def with_tail(vq: VQModel, tail_layers: int = 1) -> OutputVQModel:
    """The output VQGAN of a stock VQGAN: its weights, scaling factor 1, and a tail that nobody has trained.

    The tail's residual block starts by adding nothing and its convolution by passing on, so that the new picture is
    first made of the old features, each of them four times; `conv_out` then smooths their borders.
    """
    names = ("in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
             "layers_per_block", "latent_channels", "num_vq_embeddings", "norm_num_groups",
             "mid_block_add_attention")  # fmt: skip
    own = {name: vq.config[name] for name in names}
    width = vq.config.vq_embed_dim or vq.config.latent_channels
    with torch.random.fork_rng(devices=[]), torch.device(vq.device):
        torch.manual_seed(0)
        network = OutputVQModel(**own, vq_embed_dim=width, tail_layers=tail_layers)
    for block in network.decoder.up_blocks[len(own["up_block_types"]) :]:
        for layer in (block.resnets[-1].conv2, block.upsamplers[0].conv):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.dirac_(block.upsamplers[0].conv.weight)
    stock = {name: tensor.clone() for name, tensor in vq.state_dict().items()}
    network.load_state_dict({**network.state_dict(), **stock}, strict=True, assign=True)
    return network.eval()


def _check_parts(state: Mapping[str, Tensor], layout: ReleasedLayout) -> None:
    """Requires the first stage, and nothing that belongs to a conditional model."""
    foreign = [name for name in state if name.startswith((*CONDITIONS, LEFT_OUT["refldm.ckpt"]))]
    if foreign:
        raise WeightsError(
            f"{layout.file} holds {len(foreign)} tensors of a conditional model ({first_few(foreign)}); LD-BFR starts "
            "from an unconditional one. Take the FFHQ model."
        )
    if not any(name.startswith(FIRST_STAGE) for name in state):
        raise WeightsError(f"{layout.file} holds no VQGAN ({FIRST_STAGE}); take the file from its owners unchanged.")


def _load(folder: Path, part: str) -> nn.Module:
    """The network of a subfolder in float32 and eval mode."""
    return load_part(part_file(folder, part), _CLASSES[part], "LD-BFR needs a latent diffusion of faces.")


def _check_scheduler(folder: Path, layout: ReleasedLayout) -> str:
    """Requires the schedule of the layout; returns a remark where the folder says nothing about it."""
    from refbfr_core.diffusion import make_schedule

    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return "the folder has no scheduler; the paper's noise schedule is used"
    schedule = make_schedule(layout.schedule)
    expected = {**schedule.library, "num_train_timesteps": len(schedule)}
    cure = "Restorations would be wrong; take the owners' folder."
    check_settings(read_settings(path), expected, path, "has another noise schedule than the paper's", cure)
    return ""


def _unet_sizes(layout: ReleasedLayout) -> dict[str, Any]:
    c = layout.unet
    attends = [2**level in c["attention_resolutions"] for level in range(len(c["channel_mult"]))]
    return {
        "sample_size": c["image_size"],
        "in_channels": c["in_channels"],
        "out_channels": c["out_channels"],
        "block_out_channels": tuple(c["model_channels"] * factor for factor in c["channel_mult"]),
        "layers_per_block": c["num_res_blocks"],
        "attention_head_dim": c["num_head_channels"],
        "down_block_types": tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        "up_block_types": tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
    }


def _vq_sizes(layout: ReleasedLayout) -> dict[str, Any]:
    c = layout.vq
    return {
        "in_channels": c["in_channels"],
        "out_channels": c["out_ch"],
        "block_out_channels": tuple(c["ch"] * factor for factor in c["ch_mult"]),
        "layers_per_block": c["num_res_blocks"],
        "latent_channels": c["z_channels"],
        "num_vq_embeddings": layout.n_embed,
        "act_fn": "silu",
        "norm_type": "group",
    }


def _check_sizes(network: nn.Module, expected: Mapping[str, Any], place: Path) -> None:
    cure = "Take CompVis/ldm-celebahq-256 or the FFHQ model."
    check_settings(network.config, expected, place, "is another network than LD-BFR builds on", cure)


FOLDER = FolderKind(
    PARTS,
    tuple(PARTS.values()),
    part_file,
    lambda folder, layout, digests: read_pipeline_folder(folder, layout),
    LDM_CELEBAHQ,
)
"""A folder such as `ldm-celebahq-256`, for the import."""
