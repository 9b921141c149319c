"""Public files of the other restorers that the papers' tables compare with.

Some of them run here through spandrel; the rest is listed so that a reader finds the file, its licence and its owners'
code, and scores the results as a folder of pictures.
"""

from __future__ import annotations

from refbfr_core.weights.asset import (
    APACHE_EXCEPTIONS,
    CC_BY_NC_SA,
    FREE,
    NON_COMMERCIAL,
    NOT_STATED,
    RESTRICTED,
    S_LAB,
    Asset,
    drive_file,
    drive_folder,
    github,
    hub_file,
    hub_page,
)

_COARSE = "pass its path as the coarse restorer: named_coarse({!r})"
_VQFR = "https://github.com/TencentARC/VQFR"
_DAEFR = "LIAGM/DAEFR_pretrain_model"
_DAEFR_LICENCE = "not stated: neither a licence file nor a sentence about it was found"
_DFDNET = "https://github.com/csxmli2016/DFDNet#pre-train-models-and-dictionaries"
_DFDNET_STORE = drive_folder("1bayYIUMCSGmoFPyd4Uu2Uwn347RW-vl5")
_DR2 = "https://github.com/Kaldwin0106/DR2_Drgradation_Remover"
_DR2_STORE = "https://pan.baidu.com/s/1g8cz0hbd3wByfP9Q9bSHCQ?pwd=dr2e"
_GPEN = "https://public-vigen-video.oss-cn-shanghai.aliyuncs.com/robin/models"
_PMRF = "ohayonguy/PMRF_blind_face_image_restoration"
_PMRF_LICENCE = "MIT; it holds DifFace's SwinIR, which is under the S-Lab License 1.0"


def _daefr(name: str, filename: str, purpose: str) -> Asset:
    return Asset(name, purpose=purpose, licence=_DAEFR_LICENCE, terms=NOT_STATED, **hub_file(_DAEFR, filename))


def _gpen(name: str, filename: str, side: int) -> Asset:
    return Asset(
        name,
        filename,
        purpose=f"GPEN at {side} px",
        page="https://github.com/yangxy/GPEN#usage",
        licence="academic and non-commercial use only (owners' README)",
        terms=NON_COMMERCIAL,
        url=f"{_GPEN}/{filename}",
    )


def _gfpgan(name: str, tag: str, filename: str, purpose: str, size: int | None, sha256: str | None) -> Asset:
    return Asset(
        name,
        purpose=purpose,
        licence=APACHE_EXCEPTIONS,
        terms=FREE,
        size=size,
        sha256=sha256,
        use=_COARSE.format(filename) if sha256 else "",
        **github("TencentARC/GFPGAN", tag, filename),
    )


def _femasr(scale: int) -> Asset:
    return Asset(
        f"femasr-x{scale}",
        purpose=f"FeMaSR (ACM MM 2022), general super-resolution by {scale}",
        licence=CC_BY_NC_SA,
        terms=NON_COMMERCIAL,
        **github("chaofengc/FeMaSR", "v0.1-pretrain_models", f"FeMaSR_SRX{scale}_model_g.pth"),
    )


def _dfdnet(name: str, filename: str, purpose: str, note: str = "") -> Asset:
    return Asset(
        name, filename, purpose, _DFDNET, CC_BY_NC_SA, NON_COMMERCIAL, store=_DFDNET_STORE, note=note
    )


RESTORERS: tuple[Asset, ...] = (
    Asset(
        "codeformer",
        purpose="CodeFormer (NeurIPS 2022), the coarse restorer f of PDGrad's experiments; its w is not given there",
        licence=S_LAB,
        terms=NON_COMMERCIAL,
        size=376_637_898,
        sha256="1009e537e0c2a07d4cabce6355f53cb66767cd4b4297ec7a4a64ca4b8a5684b7",
        use=_COARSE.format("codeformer.pth"),
        **github("sczhou/CodeFormer", "v0.1.0", "codeformer.pth"),
    ),
    _gfpgan(
        "gfpgan",
        "v1.3.0",
        "GFPGANv1.4.pth",
        "GFPGAN (CVPR 2021), a coarse restorer under a permissive licence that no paper here uses as one",
        348_632_874,
        "e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad",
    ),
    _gfpgan(
        "gfpgan-v1.3",
        "v1.3.0",
        "GFPGANv1.3.pth",
        "GFPGAN, the version before",
        348_632_874,
        "c953a88f2727c85c3d9ae72e2bd4846bbaf59fe6972ad94130e23e7017524a70",
    ),
    _gfpgan(
        "gfpgan-v1",
        "v0.1.0",
        "GFPGANv1.pth",
        "GFPGAN, the paper's own model, which needs CUDA extensions; spandrel does not read it",
        None,
        None,
    ),
    Asset(
        "restoreformer",
        purpose="RestoreFormer (CVPR 2022), the version before RestoreFormer++",
        licence="Apache-2.0",
        terms=FREE,
        **github("TencentARC/GFPGAN", "v1.3.4", "RestoreFormer.pth"),
    ),
    Asset(
        "restoreformer++",
        purpose="RestoreFormer++ (TPAMI 2023); spandrel reads only its predecessor",
        licence="Apache-2.0",
        terms=FREE,
        size=294_028_815,
        **github("wzhouxiff/RestoreFormerPlusPlus", "v1.0.0", "RestoreFormer++.ckpt"),
    ),
    _femasr(4),
    _femasr(2),
    Asset(
        "vqfr-v1",
        "VQFR_v1-33a1fac5.pth",
        "VQFR (ECCV 2022), the paper's version",
        f"{_VQFR}#zap-quick-inference",
        APACHE_EXCEPTIONS,
        FREE,
        store=drive_folder("1lczKYEbARwe27FJlKoFdng7UnffGDjO2"),
    ),
    Asset(
        "vqfr-v2",
        purpose="VQFR with a ratio of fidelity to set",
        licence=APACHE_EXCEPTIONS,
        terms=FREE,
        **github("TencentARC/VQFR", "v2.0.0", "VQFR_v2.pth"),
    ),
    _daefr("daefr", "DAEFR_model.ckpt", "DAEFR (ICLR 2024), the restorer"),
    _daefr("daefr-hq-codebook", "HQ_codebook.ckpt", "DAEFR, first stage for clean faces"),
    _daefr("daefr-lq-codebook", "LQ_codebook.ckpt", "DAEFR, first stage for ruined faces"),
    _daefr("daefr-association", "Association_stage.ckpt", "DAEFR, second stage"),
    Asset(
        "dmdnet",
        purpose="DMDNet (TPAMI 2022): generic and personal dictionaries, with or without references",
        licence=CC_BY_NC_SA,
        terms=NON_COMMERCIAL,
        **github("csxmli2016/DMDNet", "v1", "DMDNet.pth"),
    ),
    Asset(
        "asffnet",
        "",
        "ASFFNet at 512 px, its authors' re-implementation; not the 256-px model of the CVPR 2020 paper",
        "https://github.com/csxmli2016/ASFFNet512#pre-train-models",
        CC_BY_NC_SA,
        NON_COMMERCIAL,
        store=drive_file("13kjKkS6SQjiVYSxD4HfUhIiYv_oNGHsD"),
    ),
    Asset(
        "pmrf",
        "blind_face_restoration_pmrf.ckpt",
        "PMRF (ICLR 2025) for faces, the checkpoint of its training",
        "https://github.com/ohayonguy/PMRF#-model-checkpoints",
        _PMRF_LICENCE,
        RESTRICTED,
        store=drive_folder("1dfjZATcQ451uhvFH42tKnfMNHRkL6N_A"),
    ),
    Asset(
        "pmrf-hub",
        "",
        "PMRF for faces, as its authors' script loads it from the Hugging Face hub",
        hub_page(_PMRF),
        _PMRF_LICENCE,
        RESTRICTED,
        repository=_PMRF,
    ),
    _dfdnet("dfdnet", "latest_net_G.pth", "DFDNet (ECCV 2020), the restorer"),
    _dfdnet("dfdnet-vgg19", "vgg19.pth", "VGG19 features that DFDNet's code loads"),
    _dfdnet(
        "dfdnet-dictionary",
        "DictionaryCenter512",
        "DFDNet's dictionaries of eyes, noses and mouths, one array a part and a scale",
        "a folder of .npy arrays, for the owners' code; this package takes in single files only",
    ),
    _gpen("gpen-512", "GPEN-BFR-512.pth", 512),
    _gpen("gpen-256", "GPEN-BFR-256.pth", 256),
    Asset(
        "dr2",
        "DR2_FFHQ.pkl",
        "DR2 (CVPR 2023), diffusion that removes degradations at 256 px",
        f"{_DR2}#download-pre-trained-models",
        "MIT",
        FREE,
        store=_DR2_STORE,
    ),
    Asset(
        "sparnethd",
        "SPARNetHD_FFHQ_DR2aug.pth",
        "SPARNetHD, which enhances what DR2 leaves",
        f"{_DR2}#enhancement-module",
        "MIT",
        FREE,
        store=_DR2_STORE,
    ),
    Asset(
        "diffbir-v1-face",
        purpose="DiffBIR v1 for faces, its control network on Stable Diffusion 2.1-base",
        licence="Apache-2.0 (its code's); made on Stable Diffusion 2.1-base, whose licence restricts the use",
        terms=RESTRICTED,
        **hub_file("lxq007/DiffBIR-v2", "v1_face.pth"),
    ),
    Asset(
        "diffbir-swinir",
        purpose="SwinIR that DiffBIR v1 restores faces with before it diffuses",
        licence="Apache-2.0",
        terms=FREE,
        **hub_file("lxq007/DiffBIR", "face_swinir_v1.ckpt"),
    ),
)
"""The files, in the order in which people read them."""
