"""What `refbfr_core.benchmark.tables.specs` is made of: one record for every table of the four papers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_LPIPS = "LPIPS with VGG features here"
_NOT_NAMED = "the paper does not name the network behind its LPIPS"
_NO_COLOUR = "PSNR and SSIM over RGB here; the paper does not say whether over RGB or luminance"
_VERSIONS = "the paper does not name the versions of the methods it compares with"
_PRINTED = "can only be printed"
_LANDMARKS = (
    "LMD is the mean distance of 98 points, in pixels; the paper calls its column LMD in the table and LLE in the text "
    "and names no detector, so the two need not measure the same"
)
_ANCHOR_FFHQ = "FID against FFHQ, also for the true pictures themselves, whose printed value is therefore 43.43"
_BODY = "the bodies of this article's tables are not among the sources; only cells that its sentences quote are known"
_ABLATED = "fine-tuned for 50,000 steps for this ablation; its authors released no such network"
_OWN_WEIGHTS = "no weights were released: this line runs with one's own training only"

_REFLDM_ROWS = ("CodeFormer", "VQFR", "DAEFR", "LDM", "DMDNet, right", "ReF-LDM, right")
_PDGRAD_SCORES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "niqe": "NIQE", "deg": "Deg", "lmd": "LMD"}
_PDGRAD_NOTES = (
    _BODY,
    _NOT_NAMED,
    _NO_COLOUR,
    "pairs of a test picture and a reference were drawn at random and are not published: another draw here",
    "downsampling by 24 to 40, far outside of what other papers use",
    "FID against CelebRef-HQ; Deg and LMD cite VQFR, LMD over 98 points; VQFR's script leaves pairs under 1 degree out "
    "of its mean, here every pair counts",
)
_DIFFMAC_ROWS = (
    "Input", "CodeFormer", "VQFR", "DifFace", "FeMaSR", "GPEN", "GFPGAN", "DFDNet", "DiffBIR", "DiffMAC, none",
)  # fmt: skip
_LDBFR_ROWS = ("DFDNet", "GPEN", "GFPGAN", "VQFR", "CodeFormer", "DR2+SPAR", "LD-BFR")
_TABLE_THREE = (
    *(f"no1_{weight}_n, none" for weight in ("0.1", "0.01", "0.001")),
    *(f"{weight}_n, none" for weight in ("0.1", "0.01", "0.001")),
    *(f"{weight}_id, none" for weight in ("0.1", "0.01", "0.001")),
    "stage I, none", "MIB w/o n|id, none", "2AdaIN, none",
)  # fmt: skip


def _pdgrad(number: int, title: str, arms: tuple[str, ...], *notes: str, subset: bool = False) -> dict[str, Any]:
    return {
        "title": f"PDGrad, Table {number}: {title}",
        "paper": "PDGrad",
        "published_tables": (f"Table {number}",),
        "datasets": {"celebref-hq": "CelebRef-HQ subset (662)" if subset else "CelebRef-HQ (1005)"},
        "arms": arms,
        "metrics": _PDGRAD_SCORES,
        "set_metrics": {"fid": "FID"},
        "notes": (*_PDGRAD_NOTES, *notes),
        "twin": "toy",
        "references": 1,
    }


PAPER_TABLES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "refldm-results": {
            "title": "ReF-LDM, Table 7: restoration with and without references",
            "paper": "ReF-LDM",
            "published_tables": ("results", "results footnote"),
            "datasets": {
                "ffhq-ref-severe": "FFHQ-Ref-Severe",
                "ffhq-ref-moderate": "FFHQ-Ref-Moderate",
                "celeba-test-ref": "CelebA-Test-Ref",
            },
            "arms": _REFLDM_ROWS,
            "metrics": {"ids": "IDS", "flpips": "fLPIPS", "lpips": "LPIPS"},
            "set_metrics": {"fid": "FID"},
            "notes": (
                "FID against FFHQ, of the results on FFHQ-Ref; none is printed for CelebA-Test-Ref",
                "DMDNet's printed line is a mean over the pictures whose landmarks were found (214 of 857, 29 of 857 "
                "and 488 of 2533 are left out); here such a picture is a failure",
                "most methods without references were trained on all of FFHQ, test identities included",
                "the masks of fLPIPS are segmentations of the true face; which network drew them is not stated",
                "IDS with the network of the paper's identity loss, which is not independent of the method",
                "LDM is scored from a folder only: no checkpoint was released",
                _VERSIONS,
            ),
            "twin": "toy",
            "references": 5,
        },
        "refldm-1": {
            "title": "ReF-LDM, Table 1: data sets",
            "paper": "ReF-LDM",
            "published_tables": ("dataset comparison",),
            "notes": ("sizes; `refbfr datasets` counts what is on this machine", _PRINTED),
        },
        "refldm-2": {
            "title": "ReF-LDM, Table 2: ways to bring references in",
            "paper": "ReF-LDM",
            "published_tables": ("Table 2", "Sec 5.2.1 text"),
            "notes": (_ABLATED, "times and memory on a GTX 1080", _PRINTED),
            "recordings": ("mechanisms-quality", "mechanisms-cost-full"),
        },
        "refldm-3": {
            "title": "ReF-LDM, Table 3: identity loss",
            "paper": "ReF-LDM",
            "published_tables": ("identity-loss ablation",),
            "notes": (_ABLATED, _PRINTED),
            "recordings": ("identity-scales",),
        },
        "refldm-4": {
            "title": "ReF-LDM, Table 4: scale of the identity loss over timesteps",
            "paper": "ReF-LDM",
            "published_tables": ("id-loss scale ablation",),
            "notes": (_ABLATED, "the paper scales by the cumulative alpha-bar, the poster says alpha", _PRINTED),
            "recordings": ("identity-scales",),
        },
        "refldm-5": {
            "title": "ReF-LDM, Table 5: number of references",
            "paper": "ReF-LDM",
            "published_tables": ("Table 5",),
            "notes": (_ABLATED, _PRINTED),
            "recordings": ("reference-counts",),
        },
        "refldm-6": {
            "title": "ReF-LDM, Table 6: time for a picture",
            "paper": "ReF-LDM",
            "published_tables": ("Table 6",),
            "notes": (
                "seconds on a GTX 1080 and an RTX 3090; five references take 12.03 here and 12.15 in Table 2",
                _PRINTED,
            ),
            "recordings": ("mechanisms-cost-full", "refldm-full-size-cpu"),
        },
        "refldm-settings": {
            "title": "ReF-LDM: settings, sizes and degradations",
            "paper": "ReF-LDM",
            "published_tables": (
                "degradation", "released code", "poster text", "Sec 4 text", "Sec 4.2 text", "Sec 4.3 text",
                "Sec 4.4 text", "Sec 5.1 text", "Sec 5.1 / App. G",
            ),
            "notes": (_PRINTED,),
        },
        "pdgrad-1": _pdgrad(
            1, "methods with references", ("ASFFNet, right", "DMDNet, right", "PGDiff, right", "PDGrad, right"),
            "printed for the 662 pairs whose landmarks ASFFNet and DMDNet find, which are not published; here all "
            "pairs, so the lines are not like for like",
            subset=True,
        ),
        "pdgrad-2": _pdgrad(2, "PGDiff on all pairs", ("PGDiff, right", "PDGrad, right")),
        "pdgrad-3": _pdgrad(
            3, "methods without references",
            ("CodeFormer", "VQFR", "RestoreFormer++", "DifFace", "PMRF", "PDGrad, right"),
            _VERSIONS,
        ),
        "pdgrad-4": _pdgrad(
            4, "projection and cap", ("A1, right", "A2, right", "PDGrad, right"),
            "the percentages printed for A2 against A1 are those of the full method against A1",
        ) | {"recordings": ("pdgrad-ablations",)},
        "pdgrad-5": _pdgrad(
            5, "low-level distances", ("A3 (d_arc only), right", "A4 (d_vgg only), right", "PDGrad, right")
        ) | {"recordings": ("pdgrad-ablations",)},
        "pdgrad-6": _pdgrad(
            6, "one guide alone", ("A5 (y_c only), right", "A6 (y_r only), right", "PDGrad, right"),
            "no number of this table is known",
        ) | {"recordings": ("pdgrad-ablations",)},
        "pdgrad-settings": {
            "title": "PDGrad: settings, sizes and degradation",
            "paper": "PDGrad",
            "published_tables": ("Sec 4.1.1", "Sec 4.1.2", "Sec 4.1.2 degradation"),
            "notes": (_PRINTED,),
        },
        "ldbfr-1": {
            "title": "LD-BFR, Table 1: CelebA-Test, ruined at three severities",
            "paper": "LD-BFR",
            "published_tables": ("Table 1",),
            "datasets": {
                f"celeba-test-dr2-{severity}": "CelebA-Test (DR2 splits)" for severity in ("mild", "medium", "severe")
            },
            "arms": _LDBFR_ROWS,
            "metrics": {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"},
            "set_metrics": {"fid": "FID"},
            "notes": (
                "printed once for the three severities together, how they are pooled is not stated; measured for each "
                "severity here",
                "the reference set of FID is not named; FFHQ here, as the methods it compares with use",
                "degraded anew with the stated ranges, not the authors' pictures: not comparable with the CelebA-Test "
                "of DiffMAC",
                "the text calls its FID the highest; it is the lowest, that is the best",
                _NOT_NAMED, _NO_COLOUR, _VERSIONS, f"LD-BFR: {_OWN_WEIGHTS}",
            ),
            "twin": "toy",
            "recordings": ("ldbfr-ablations",),
        },
        "ldbfr-2": {
            "title": "LD-BFR, Table 2: photographs without truth",
            "paper": "LD-BFR",
            "published_tables": ("Table 2",),
            "datasets": {"lfw-test": "LFW-Test", "wider-test": "WIDER-Test"},
            "arms": _LDBFR_ROWS,
            "set_metrics": {"fid": "FID"},
            "notes": (
                "the reference set of FID is not named; FFHQ here, as the methods it compares with use",
                "LFW-Test agrees with DiffMAC's Table 2 for CodeFormer, VQFR, GFPGAN and DFDNet within about 0.3, not "
                "for GPEN",
                _VERSIONS, f"LD-BFR: {_OWN_WEIGHTS}",
            ),
            "twin": "toy",
        },
        "ldbfr-settings": {
            "title": "LD-BFR: settings, sizes and degradations",
            "paper": "LD-BFR",
            "published_tables": (
                "Sec 4.1", "Sec 4.1 degradation", "Sec 4.1 training", "released config", "released config degradation",
            ),
            "notes": ("ranges of the text and of the released configuration differ", _PRINTED),
        },
        "diffmac-1": {
            "title": "DiffMAC, Table 1: CelebA-Test",
            "paper": "DiffMAC",
            "published_tables": ("Table 1",),
            "datasets": {"celeba-test": "CelebA-Test (VQFR images)"},
            "arms": _DIFFMAC_ROWS,
            "metrics": {
                "lpips": "LPIPS", "niqe": "NIQE", "musiq": "MUSIQ", "ids": "Arc", "lmd": "LMD", "psnr": "PSNR",
                "ssim": "SSIM",
            },
            "set_metrics": {"fid": "FID"},
            "notes": (
                _ANCHOR_FFHQ, _LANDMARKS, "Arc is the cosine of ArcFace embeddings; the network is not named",
                _NOT_NAMED, _NO_COLOUR, _VERSIONS, f"DiffMAC: {_OWN_WEIGHTS}",
            ),
            "twin": "toy",
        },
        "diffmac-2": {
            "title": "DiffMAC, Table 2: photographs without truth",
            "paper": "DiffMAC",
            "published_tables": ("Table 2",),
            "datasets": {"lfw-test": "LFW-Test", "celebchild": "CelebChild", "webphoto": "WebPhoto", "hfw": "HFW"},
            "arms": _DIFFMAC_ROWS,
            "metrics": {"niqe": "NIQE", "musiq": "MUSIQ"},
            "set_metrics": {"fid": "FID"},
            "notes": (
                "FID against FFHQ; for HFW it is printed without an arrow, since its faces are meant to differ",
                "HFW was collected by the authors and is not public as far as is known",
                _VERSIONS, f"DiffMAC: {_OWN_WEIGHTS}",
            ),
            "twin": "toy",
        },
        "diffmac-3": {
            "title": "DiffMAC, Table 3: ablations on CelebChild",
            "paper": "DiffMAC",
            "published_tables": ("Table 3",),
            "datasets": {"celebchild": "CelebChild"},
            "arms": _TABLE_THREE,
            "metrics": {"niqe": "NIQE", "musiq": "MUSIQ"},
            "set_metrics": {"fid": "FID"},
            "notes": (
                "repeated values that may be slips of copying: FID 119.40 in 0.001_n and 0.01_id, NIQE 5.785 in "
                "0.001_id and 2AdaIN",
                "stage I alone and no1_0.01_n have a better FID than the chosen 0.001_id",
                "lambda_info of the line without compensation is not stated; 0.001 here",
                _OWN_WEIGHTS,
            ),
            "recordings": ("diffmac-ablations",),
        },
        "diffmac-4": {
            "title": "DiffMAC, Table 4: what users say of results",
            "paper": "DiffMAC",
            "published_tables": ("Table 4",),
            "notes": ("the caption speaks of kept colours, the text and the arrow of distorted ones", _PRINTED),
        },
        "diffmac-5": {
            "title": "DiffMAC, Table 5: what users say of Fig. 1",
            "paper": "DiffMAC",
            "published_tables": ("Table 5",),
            "notes": (_PRINTED,),
        },
        "diffmac-6": {
            "title": "DiffMAC, Table 6: time for a picture",
            "paper": "DiffMAC",
            "published_tables": ("Table 6",),
            "notes": ("seconds on an RTX 3090; every run of a table keeps its own times", _PRINTED),
            "twin": "toy",
            "recordings": ("diffmac-speed",),
        },
        "diffmac-settings": {
            "title": "DiffMAC: settings, sizes, degradation and user study",
            "paper": "DiffMAC",
            "published_tables": ("Sec 4.1.1", "Sec 4.1.1 degradation", "Sec 4.1.2", "Sec 4.3"),
            "notes": (_PRINTED,),
        },
    }
)  # fmt: skip
"""Name -> keywords of `TableSpec`, with arms as text."""
