"""Public files of metrics on photographs: trunks of LPIPS, Inception, statistics, quality and landmark networks."""

from __future__ import annotations

from refbfr_core.weights.asset import FREE, NON_COMMERCIAL, NOT_STATED, Asset, drive_folder, github, hub_file

_TORCHVISION = "https://docs.pytorch.org/vision/stable/models/generated/torchvision.models"
_TORCHVISION_LICENCE = "torchvision is BSD-3-Clause; its weights state none of their own (trained on ImageNet)"
_PYIQA = "chaofengc/IQA-PyTorch-Weights"
_PYIQA_LICENCE = "CC BY-NC-SA 4.0, non-commercial (the repository's)"
_VQFR_METRICS = {
    "page": "https://github.com/TencentARC/VQFR#straight_ruler-evaluation",
    "store": drive_folder("1k3RCSliF6PsujCMIdCD1hNM63EozlDIZ"),
    "licence": "not stated for this file (its repository is under Apache-2.0 with listed exceptions)",
    "terms": NOT_STATED,
}


def _trunk(name: str, network: str, filename: str, prefix: str, **known: str | int) -> Asset:
    """A network of torchvision; torchvision names its files by the first digits of their SHA-256."""
    return Asset(
        name,
        filename,
        f"trunk of LPIPS: {network} of torchvision",
        f"{_TORCHVISION}.{network}.html",
        _TORCHVISION_LICENCE,
        FREE,
        torchvision=network,
        sha256_prefix=prefix,
        library=f"torch-hub/checkpoints/{filename}",
        **known,
    )


METRIC_FILES: tuple[Asset, ...] = (
    _trunk(
        "lpips-vgg16",
        "vgg16",
        "vgg16-397923af.pth",
        "397923af",
        size=553_433_881,
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    _trunk("lpips-alexnet", "alexnet", "alexnet-owt-7be5be79.pth", "7be5be79"),
    _trunk(
        "lpips-squeezenet",
        "squeezenet1_1",
        "squeezenet1_1-b8a52dc0.pth",
        "b8a52dc0",
        sha256="b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
    ),
    Asset(
        "inception-fid",
        purpose="Inception network of the original FID code, ported to PyTorch: features of FID and KID",
        licence="Apache-2.0",
        terms=FREE,
        size=95_628_359,
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        sha256_prefix="6726825d",
        library="torch-hub/checkpoints/pt_inception-2015-12-05-6726825d.pth",
        **github("mseitzer/pytorch-fid", "fid_weights", "pt_inception-2015-12-05-6726825d.pth"),
    ),
    Asset(
        "fid-ffhq-512",
        "inception_FFHQ_512.pth",
        purpose="Inception mean and covariance of FFHQ at 512 px: the reference of FID in VQFR's protocol",
        **_VQFR_METRICS,
    ),
    Asset(
        "fid-ffhq-trainval70k",
        purpose="Inception mean and covariance of all of FFHQ at 512 px: the reference of FID in ReF-LDM's protocol",
        licence=_PYIQA_LICENCE,
        terms=NON_COMMERCIAL,
        library="torch-hub/pyiqa/ffhq_clean_trainval70k_512.npz",
        **hub_file(_PYIQA, "ffhq_clean_trainval70k_512.npz"),
    ),
    Asset(
        "niqe-statistics",
        purpose="mean and covariance of pristine pictures that NIQE compares with",
        licence=_PYIQA_LICENCE,
        terms=NON_COMMERCIAL,
        library="torch-hub/pyiqa/niqe_modelparameters.mat",
        **hub_file(_PYIQA, "niqe_modelparameters.mat"),
    ),
    Asset(
        "musiq-koniq",
        purpose="MUSIQ trained on KonIQ-10k, converted for PyTorch by pyiqa's authors",
        licence=f"{_PYIQA_LICENCE}; its first authors' code is Apache-2.0",
        terms=NON_COMMERCIAL,
        size=108_610_983,
        sha256="e95806b9eae5f3814c410f574ba8e552362bd5bc63d758ed5b97860f5d6185aa",
        sha256_prefix="e95806b9",
        library="torch-hub/pyiqa/musiq_koniq_ckpt-e95806b9.pth",
        **hub_file(_PYIQA, "musiq_koniq_ckpt-e95806b9.pth", "0df2df423c65f6a64209309695f3845727431027"),
    ),
    Asset(
        "awing-98",
        purpose="AWing landmark network, 98 points of WFLW: landmark distance (LMD) on photographs",
        licence="MIT (facexlib's README); none stated for the weights themselves",
        terms=FREE,
        library="facexlib/alignment_WFLW_4HG.pth",
        **github("xinntao/facexlib", "v0.1.0", "alignment_WFLW_4HG.pth"),
    ),
    Asset(
        "vqfr-deg-resnet18",
        "resnet18_110.pth",
        purpose="the grey ResNet-18 that Deg is measured with in VQFR's protocol",
        **_VQFR_METRICS,
    ),
)
"""The files, in the order in which people read them."""
