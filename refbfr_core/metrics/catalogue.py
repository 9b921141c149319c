"""Every score of single pictures, with its protocol."""

from __future__ import annotations

from collections.abc import Callable

from refbfr_core.errors import RefbfrError
from refbfr_core.metrics import blind, colour, features, identity, landmarks, perceptual, pixels, quality
from refbfr_core.metrics.assets import missing_file, package_missing
from refbfr_core.metrics.metric import Metric
from refbfr_core.metrics.vqfr import DEG_PROTOCOLS


def _nothing() -> None:
    return None


def _trunk(net: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        return package_missing("lpips")() or perceptual.missing_trunk(net)

    return missing


def _pyiqa(asset: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        return package_missing("pyiqa")() or missing_file(asset)

    return missing


def _detector() -> str | None:
    missing = package_missing("facexlib")() or missing_file("awing-98")
    return f"{landmarks.NEEDS} {missing}" if missing else None


def _shipped(network: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        from refbfr_core.weights import shipped_root, verify_network

        try:
            verify_network(shipped_root("toy") / network)
        except RefbfrError as error:
            return str(error)
        return None

    return missing


def _textures() -> str | None:
    from refbfr_core.metrics.textures import load_textures

    try:
        load_textures("cpu")
    except RefbfrError as error:
        return str(error)
    return None


def _statistics() -> str | None:
    from refbfr_core.metrics.pristine import load_pristine

    try:
        load_pristine()
    except RefbfrError as error:
        return str(error)
    return None


_SSIM = "Gaussian window 11 x 11, sigma 1.5, K1 0.01, K2 0.03, data range 1, windows wholly inside the image, mean"
_IDENTITY = (
    "of face embeddings; 1/16 cropped off every side, area resize to 112 px, RGB in [-1, 1]; default embedder: the "
    "shipped judge (drawn faces); on photographs pass an ArcFace and name it"
)
_BIAS = "mean over all places of restored - true, RGB, 0 ... 255"
_LPIPS = "LPIPS v0.1, learned weights, trunk {}, RGB in [-1, 1], original size"

METRICS: tuple[Metric, ...] = (
    Metric(
        "psnr", "higher", (0.0, float("inf")), "dB", "RGB, data range 1, MSE over all values of an image", "nothing",
        pixels.psnr, _nothing,
    ),
    Metric(
        "psnr-y", "higher", (0.0, float("inf")), "dB", "luma of YIQ, 0 ... 1, not rounded; data range 1 (pyiqa's "
        "'psnry'); MATLAB's luma would give 1.3 dB more", "nothing", pixels.psnr_y, _nothing,
    ),
    Metric(
        "ssim", "higher", (-1.0, 1.0), "", f"RGB, {_SSIM}", "torchmetrics", pixels.ssim,
        package_missing("torchmetrics"),
    ),
    Metric(
        "ssim-y", "higher", (-1.0, 1.0), "", f"luma of YIQ rounded to 8 bits, {_SSIM} (close to pyiqa's 'ssim')",
        "torchmetrics", pixels.ssim_y, package_missing("torchmetrics"),
    ),
    Metric(
        "lpips", "lower", (0.0, float("inf")), "", _LPIPS.format("VGG-16 unless net= says otherwise"),
        "lpips, and torchvision's ImageNet VGG-16 (528 MB)", perceptual.lpips_distance, _trunk("vgg"),
    ),
    Metric(
        "lpips-alex", "lower", (0.0, float("inf")), "", _LPIPS.format("AlexNet"),
        "lpips, and torchvision's ImageNet AlexNet (233 MB)", perceptual.variant("alex"), _trunk("alex"),
    ),
    Metric(
        "lpips-squeeze", "lower", (0.0, float("inf")), "", _LPIPS.format("SqueezeNet 1.1"),
        "lpips, and torchvision's ImageNet SqueezeNet 1.1 (5 MB)", perceptual.variant("squeeze"), _trunk("squeeze"),
    ),
    Metric(
        "flpips", "lower", (0.0, float("inf")), "", "ReF-LDM's fLPIPS: both pictures times one binary face mask, so "
        f"black outside, then {_LPIPS.format('VGG-16')}, mean over the whole frame; mask: of the true picture, 0.5 and "
        "more count; the authors': CelebAMask-HQ's skin, ears, brows, eyes, glasses, nose, mouth, lips",
        "mask=, lpips, and torchvision's ImageNet VGG-16 (528 MB)", perceptual.face_lpips, _trunk("vgg"),
        mask_required=True,
    ),
    Metric(
        "ids", "higher", (-1.0, 1.0), "", f"cosine {_IDENTITY}", "a face embedder", identity.ids,
        _shipped("judge"),
    ),
    Metric(
        "deg", "lower", (0.0, 180.0), "degrees", f"angle {_IDENTITY}; every pair counts in a mean, unlike in VQFR's "
        "script ('deg-over-1', or mean_deg(angles, 'vqfr')), which also embeds the whole picture in grey at 128 px "
        "(GreyEmbedder)",
        "a face embedder; VQFR's own is resnet18_110.pth, which does not ship", identity.deg, _shipped("judge"),
    ),
    Metric(
        "deg-over-1", "lower", (0.0, 180.0), "degrees", f"angle {_IDENTITY}; a mean leaves out pairs under 1 degree as "
        "VQFR's script does (mean_score)", "a face embedder; VQFR's own is resnet18_110.pth, which does not "
        "ship", identity.deg, _shipped("judge"), counts_from=DEG_PROTOCOLS["vqfr"],
    ),
    Metric(
        "lmd", "lower", (0.0, float("inf")), "pixels", "mean Euclidean distance of corresponding landmarks in pixels "
        "of the pictures as they come; normalise= changes the unit; VQFR and PDGrad: 98 AWing points on aligned 512 px "
        "pictures, not normalised (detector=load_awing())", "exact landmarks of drawn faces, or a detector",
        landmarks.lmd, _detector, target_required=False, pictures="photographs",
    ),
    Metric(
        "niqe", "lower", (0.0, float("inf")), "", "pyiqa's 'niqe': luma of YIQ rounded to 8 bits, no border cut off, "
        "original size, patches of 96 px, statistics of the authors' natural photographs", "pyiqa, and its "
        "niqe_modelparameters.mat", blind.niqe, _pyiqa(blind.NIQE_ASSET), target_required=False,
        pictures="photographs",
    ),
    Metric(
        "musiq", "higher", (float("-inf"), float("inf")), "", "pyiqa's 'musiq': trained on KonIQ-10k, whose opinions "
        "run from 0 to 100; RGB, 224 px, 384 px and original size together", "pyiqa, and its "
        "musiq_koniq_ckpt-e95806b9.pth (109 MB)", blind.musiq, _pyiqa(blind.MUSIQ_ASSET), target_required=False,
        pictures="photographs",
    ),
    Metric(
        "niqe-toy", "lower", (0.0, float("inf")), "", "NIQE's features and distance; luma of YIQ rounded to 8 bits, "
        "128 px, patches of 32 px; a stand-in for NIQE: the pristine Gaussian is of clean drawn faces, not of natural "
        "photographs, so its numbers compare with no other NIQE", "pyiqa, and the shipped statistics",
        quality.niqe_toy, lambda: package_missing("pyiqa")() or _statistics(), target_required=False, pictures="drawn",
    ),
    Metric(
        "detail", "zero", (float("-inf"), float("inf")), "dB", "10 log10 of the ratio of high-frequency luma energies, "
        "restored over true: what a Gaussian blur takes away (sigma 1 px of 128), squared, mean over the face; face: "
        "the box of rows 1/3 to 7/8 and columns 1/3 to 2/3 unless mask= says otherwise; negative is too soft, positive "
        "too busy; says how much detail, not whether it is the right one", "torchvision",
        quality.detail, package_missing("torchvision"),
    ),
    Metric(
        "lpips-toy", "lower", (0.0, float("inf")), "", "LPIPS with the shipped network 'perceptual', trained on drawn "
        "faces, in place of VGG-16; RGB in [-1, 1], original size; compares with no published LPIPS, and flatters "
        "whatever was trained against that network: it is a loss of both of LD-BFR's VQGANs and guides PDGrad",
        "nothing", features.toy_lpips, _shipped("perceptual"), pictures="drawn",
    ),
    Metric(
        "flpips-toy", "lower", (0.0, float("inf")), "", "both pictures times one binary face mask, so black outside, "
        "then 'lpips-toy', mean over the whole frame; mask: the renderer's for the true picture, at least 0.5 counts; "
        "a stand-in for fLPIPS that compares with no published one", "mask=", features.toy_face_lpips,
        _shipped("perceptual"), mask_required=True, pictures="drawn",
    ),
    Metric(
        "textures", "lower", (0.0, float("inf")), "", "root mean square difference of texture statistics (mean and log "
        "deviation of the channels behind the judge's stem and first stage, 1/16 cropped off every side, 112 px), "
        "whitened by clean drawn faces, of 128 px pictures; blind to where in the picture a texture is; the judge "
        "takes part in no training and no guidance", "the shipped judge and statistics",
        features.texture_distance, _textures, pictures="drawn",
    ),
    Metric(
        "colour-bias", "lower", (0.0, colour.GREY_LEVELS * 3**0.5), "grey levels",
        f"length over R, G, B of the {_BIAS}; brightness counts as well as hue", "nothing",
        colour.colour_bias, _nothing,
    ),
    *(
        Metric(
            f"bias-{channel}", "zero", (-colour.GREY_LEVELS, colour.GREY_LEVELS), "grey levels",
            f"{_BIAS}, {channel} channel only; errors of both signs cancel in a mean over pictures", "nothing",
            colour.bias_of(channel), _nothing,
        )
        for channel in colour.CHANNELS
    ),
)  # fmt: skip
