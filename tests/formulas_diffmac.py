"""DiffMAC's formulas written out number by number, and the comparisons of the networks with them.

Loops over samples, channels and places instead of broadcasting, so that an axis taken for another one shows. The
modulated denoiser is compared with the stock one whose encoder layers are wrapped from outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import tiny_diffmac as tiny
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from refbfr_core.diffusion import make_schedule
from refbfr_core.models import bottleneck, modulated_unet, modulation, moments
from refbfr_core.models.bottleneck import ManifoldBottleneck
from refbfr_core.models.modulated_unet import freeze_unet
from refbfr_core.models.modulation import FeatureModulation
from refbfr_core.training.diffmac_recipes import StageTwoRecipe
from refbfr_core.training.second_stage import StageTwoNetwork, StageTwoTask

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
SCALE = 0.18215


def draw(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    """Normal values of a seed."""
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stock_vae(seed: int = 0) -> AutoencoderKL:
    """A KL autoencoder as Stable Diffusion has it, without folded pixels: 16 px to moments of 8 x 8 x 8."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, scaling_factor=SCALE,
        ).eval()  # fmt: skip


# --- the formulas -----------------------------------------------------------------------------------------------------


def convolved(layer: nn.Conv2d, picture: Tensor) -> Tensor:
    """A convolution of (C, h, w) place by place, with its padding of zeros and its stride."""
    side, stride, margin = layer.kernel_size[0], layer.stride[0], layer.padding[0]
    _, height, width = picture.shape
    padded = picture.new_zeros(len(picture), height + 2 * margin, width + 2 * margin)
    padded[:, margin : margin + height, margin : margin + width] = picture
    made = picture.new_zeros(len(layer.weight), height // stride, width // stride)
    for y in range(made.shape[1]):
        for x in range(made.shape[2]):
            patch = padded[:, y * stride : y * stride + side, x * stride : x * stride + side]
            made[:, y, x] = layer.weight.flatten(1) @ patch.flatten() + layer.bias
    return made


def pyramid(module: FeatureModulation, condition: Tensor) -> list[list[Tensor]]:
    """z_S of every sample, the finest level first."""
    rows = []
    for own in condition:
        levels, x = [], own
        for layer in module.condition_convs:
            x = convolved(layer, x)
            x = x * torch.sigmoid(x)
            levels.append(x)
        rows.append(levels)
    return rows


def modulated(module: FeatureModulation, index: int, h: Tensor, condition: Tensor) -> Tensor:
    """H of equations 2 to 4 for encoder tensor `index`."""
    rows = []
    for own, levels in zip(h, pyramid(module, condition), strict=True):
        given = levels[module.config.levels[index]]
        scale, shift = convolved(module.scales[index], given), convolved(module.shifts[index], given)
        planes = []
        for plane, gamma, beta in zip(own, scale, shift, strict=True):
            values = [float(value) for value in plane.flatten()]
            mean = sum(values) / len(values)
            deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-5)
            if module.config.channelwise:
                gamma, beta = gamma.mean(), beta.mean()
            planes.append(gamma * (plane - mean) / deviation + beta + plane)
        rows.append(torch.stack(planes))
    return torch.stack(rows)


def bottlenecked(
    module: ManifoldBottleneck,
    moments_of_first: Tensor,
    identity: Tensor | None,
    noise: Tensor | None,
    share: float | None = None,
) -> dict[str, Tensor]:
    """Z and its parts, equations 7 to 9 and 11, one number at a time."""
    names = ("moments", "share", "normalised", "compensation", "information")
    made = {name: torch.zeros_like(moments_of_first) for name in names}
    for b, first in enumerate(moments_of_first):
        normal = torch.zeros_like(first)
        for c, y, x in _places(first):
            mean, std = (_statistic(each, c, y, x) for each in (module.mean, module.std))
            normal[c, y, x] = (first[c, y, x] - mean) / max(float(std), module.config.min_std)
        logits = convolved(module.conv, normal)
        for c, y, x in _places(first):
            place = (b, c, y, x)
            kept = float(logits[c, y, x].clamp(-5, 5))
            kept = 1 / (1 + math.exp(-kept)) if share is None else share
            mean, std = float(_statistic(module.mean, c, y, x)), float(_statistic(module.std, c, y, x))
            r, filling = float(normal[c, y, x]), 0.0
            if module.config.compensation == "identity":
                gamma = float(module.scale.weight[c] @ identity[b] + module.scale.bias[c])
                filling = gamma * r + float(module.shift.weight[c] @ identity[b] + module.shift.bias[c])
            if module.config.compensation == "noise":
                filling = mean + max(std, module.config.min_std) * float(noise[place])
            for name, value in zip(
                names, (kept * float(first[c, y, x]) + (1 - kept) * filling, kept, r, filling, divergence(kept, r)),
                strict=True,
            ):  # fmt: skip
                made[name][place] = value
    return made


def divergence(share: float, r: float) -> float:
    """KL(N(lambda r, (1 - lambda)^2) || N(0, 1)) from the textbook formula for two Gaussians."""
    return math.log(1 / (1 - share)) + ((1 - share) ** 2 + (share * r) ** 2) / 2 - 0.5


def _places(picture: Tensor) -> Iterator[tuple[int, int, int]]:
    for c in range(picture.shape[0]):
        for y in range(picture.shape[1]):
            for x in range(picture.shape[2]):
                yield c, y, x


def _statistic(values: Tensor, c: int, y: int, x: int) -> Tensor:
    return values[c, 0, 0] if values.shape[-1] == 1 else values[c, y, x]


@contextmanager
def wrapped(
    network: UNet2DConditionModel, change: Callable[[int, Tensor], Tensor]
) -> Iterator[None]:
    """The stock network with `change(index, h)` around each layer whose output goes onto the skip stack."""
    layers: list[nn.Module] = [network.conv_in]
    for block in network.down_blocks:
        layers += list(getattr(block, "attentions", None) or block.resnets)
        layers += list(block.downsamplers or ())
    handles = [layer.register_forward_hook(partial(_replace, change, index)) for index, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _replace(change: Callable[[int, Tensor], Tensor], index: int, layer: nn.Module, came: object, went: object):
    if isinstance(went, tuple):  # a transformer
        return (change(index, went[0]), *went[1:])
    return change(index, went)


# --- the comparisons; a mutation must make them fail ------------------------------------------------------------------


@torch.no_grad()
def compare_moments() -> None:
    """The way to moments and latents and back, against a stock autoencoder and its own distribution."""
    vae, pictures = stock_vae(), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    posterior = vae.encode(2 * pictures - 1).latent_dist
    came = moments.encode_moments(vae, pictures)
    torch.testing.assert_close(came, vae.quant_conv(vae.encoder(2 * pictures - 1)), rtol=0, atol=0)
    torch.testing.assert_close(came[:, :4], posterior.mean, rtol=0, atol=0)
    torch.testing.assert_close(moments.latents_of(came, SCALE), SCALE * posterior.mode(), rtol=0, atol=0)
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(7))
    drawn = posterior.sample(torch.Generator().manual_seed(7))
    torch.testing.assert_close(moments.latents_of(came, SCALE, noise), SCALE * drawn)
    back = moments.decode_latent(vae, moments.latents_of(came, SCALE))
    torch.testing.assert_close(back, vae.decode(posterior.mode()).sample, rtol=1e-4, atol=1e-5)
    folded = tiny.vae()
    faces = tiny.faces(2)
    posterior = folded.encode(nn.functional.pixel_unshuffle(2 * faces - 1, 2)).latent_dist
    torch.testing.assert_close(moments.encode_moments(folded, faces), posterior.parameters, rtol=0, atol=0)


@torch.no_grad()
def compare_statistics(per_channel: bool = True) -> None:
    """Welford's statistics of uneven batches against two passes over all of them."""
    everything = 3 + draw(17, 8, 3, 4) * torch.linspace(0.2, 4, 8).view(8, 1, 1)
    running = moments.RunningMoments(per_channel)
    for part in everything.split([5, 1, 8, 3]):
        running.update(part)
    dims = (0, 2, 3) if per_channel else (0,)
    mean = everything.double().mean(dims, keepdim=True)
    std = (everything.double() - mean).square().mean(dims, keepdim=True).sqrt()
    torch.testing.assert_close(running.mean, mean[0].float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(running.std, std[0].float(), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def compare_modulation(channelwise: bool = False) -> None:
    """Each encoder tensor's modulation against loops."""
    module = tiny.modulation(tiny.unet())
    module.register_to_config(channelwise=channelwise)
    condition = draw(2, 4, 16, 16, seed=3)
    maps = module.conditions(condition)
    for index, (width, level) in enumerate(modulation.encoder_tensors(tiny.unet())):
        if index not in (0, 2, 3, 7, 11):
            continue
        h = 0.5 + draw(2, width, 16 >> level, 16 >> level, seed=10 + index)
        torch.testing.assert_close(
            module.modulate(index, h, maps), modulated(module, index, h, condition), rtol=1e-3, atol=1e-4
        )


@torch.no_grad()
def compare_tensors() -> None:
    """The list of tensors to modulate against what the stock network puts on its skip stack."""
    network, shapes = tiny.unet(), []
    with wrapped(network, lambda index, h: shapes.append((h.shape[1], 16 // h.shape[-1])) or h):
        network(draw(1, 4, 16, 16), 5, encoder_hidden_states=torch.zeros(1, 1, 8))
    assert [(width, 2**level) for width, level in modulation.encoder_tensors(network)] == shapes


@torch.no_grad()
def compare_network() -> None:
    """The modulated denoiser against the stock forward pass with its layers wrapped."""
    network = tiny.unet()
    module = tiny.modulation(network, size=0.1)
    sample, condition = draw(2, 4, 16, 16), draw(2, 4, 16, 16, seed=1)
    prompt, steps = draw(1, 3, 8, seed=2), torch.tensor([4, 800])
    maps, seen = module.conditions(condition), []

    def change(index: int, h: Tensor) -> Tensor:
        seen.append(index)
        return module.modulate(index, h, maps)

    with wrapped(network, change):
        expected = network(sample, steps, encoder_hidden_states=prompt.expand(2, -1, -1)).sample
    assert seen == list(range(12))
    came = modulated_unet.denoise_modulated(network, sample, steps, prompt, module, condition)
    torch.testing.assert_close(came, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def compare_bottleneck(compensation: str = "identity", share: float | None = None, side: int = 0) -> None:
    """Z and all of its parts against loops; one standard deviation lies below the smallest that is allowed."""
    module = tiny.tiny_second(compensation, statistics_side=side).bottleneck
    std = module.std.clone()
    std[2] = 1e-4
    mean = module.mean.clone()
    if side:
        mean, std = mean + draw(*mean.shape, size=0.1), std * (1 + 0.1 * draw(*std.shape, seed=1).tanh())
    module.mean.copy_(mean)
    module.std.copy_(std)
    h = side or 3
    first = mean + (draw(2, 8, h, h, seed=4) * std)
    identity, noise = draw(2, tiny.IDENTITY_DIM, seed=5), draw(2, 8, h, h, seed=6)
    came = module(first, identity, noise if compensation == "noise" else None, share)
    for name, expected in bottlenecked(module, first, identity, noise, share).items():
        torch.testing.assert_close(getattr(came, name), expected, **CLOSE)


def compare_kl() -> None:
    """The divergence against the library's for two Gaussians, in double precision."""
    share = torch.linspace(0, 0.99, 34, dtype=torch.float64)[:, None]
    r = torch.linspace(-3, 3, 13, dtype=torch.float64)[None]
    mean, std = 0.7, 1.9
    share, r = torch.broadcast_tensors(share, r)
    first = mean + std * r
    posterior = torch.distributions.Normal(share * first + (1 - share) * mean, (1 - share) * std)
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(mean, std))
    torch.testing.assert_close(bottleneck.kl_exact(share, r), expected, rtol=1e-6, atol=1e-6)
    printed = bottleneck.kl_printed(share, r) - bottleneck.kl_exact(share, r)
    torch.testing.assert_close(printed, -torch.log1p(-share), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def compare_saturated() -> None:
    """A convolution that would keep everything keeps 0.9933, so that the divergence stays finite."""
    module = tiny.tiny_second().bottleneck
    module.conv.bias.copy_(torch.tensor([1e4, -1e4] * 4))
    made = module(draw(1, 8, 3, 3), draw(1, tiny.IDENTITY_DIM, seed=1))
    expected = torch.sigmoid(torch.tensor([5.0, -5.0] * 4)).view(8, 1, 1).expand(1, 8, 3, 3)
    torch.testing.assert_close(made.share, expected)


@torch.no_grad()
def compare_printed() -> None:
    """A bottleneck that was asked for the printed form charges it."""
    module = tiny.tiny_second(kl="printed").bottleneck
    made = module(draw(1, 8, 3, 3), draw(1, tiny.IDENTITY_DIM, seed=1))
    torch.testing.assert_close(made.information, bottleneck.kl_printed(made.share, made.normalised))


def compare_objective(compensation: str = "identity", prediction: str = "v_prediction") -> None:
    """Equation 13 of one batch, and its gradient, written out with the stock denoiser and its layers wrapped."""
    recipe = StageTwoRecipe(
        compensation=compensation, prediction=prediction, info_weight=0.3, rec_weight=0.7, min_snr=0.0
    )
    second, unet = tiny.tiny_second(compensation, size=0.1), tiny.unet()
    task = StageTwoTask.__new__(StageTwoTask)
    task.recipe, task.schedule, task.scaling = recipe, make_schedule(recipe.schedule), SCALE
    clean_moments, first = draw(2, *tiny.MOMENTS, seed=1), draw(2, *tiny.MOMENTS, seed=2)
    batch = {
        "clean": SCALE * clean_moments[:, :4], "mode": SCALE * clean_moments[:, :4], "noise": draw(2, 4, 16, 16),
        "timesteps": torch.tensor([40, 700]), "moments": first, "identity": draw(2, tiny.IDENTITY_DIM, seed=3),
        "filling": draw(2, *tiny.MOMENTS, seed=4), "drawn": draw(2, 4, 16, 16, seed=5),
    }  # fmt: skip
    total, _ = task.loss(StageTwoNetwork(freeze_unet(unet, "none"), second, SCALE), batch, 0)
    parameters = list(second.parameters())
    gradients = torch.autograd.grad(total, parameters)

    made = second.bottleneck(first, batch["identity"], batch["filling"])
    mean, log_variance = made.moments[:, :4], made.moments[:, 4:]
    maps = second.modulation.conditions(SCALE * (mean + torch.exp(log_variance / 2) * batch["drawn"]))
    kept = task.schedule.alphas_cumprod[batch["timesteps"]].float().view(2, 1, 1, 1)
    noisy = kept.sqrt() * batch["clean"] + (1 - kept).sqrt() * batch["noise"]
    with wrapped(unet, lambda index, h: second.modulation.modulate(index, h, maps)):
        predicted = unet(noisy, batch["timesteps"], encoder_hidden_states=torch.zeros(2, 1, 8)).sample
    velocity = kept.sqrt() * batch["noise"] - (1 - kept).sqrt() * batch["clean"]
    target = velocity if prediction == "v_prediction" else batch["noise"]
    information = bottleneck.kl_exact(made.share, made.normalised).mean()
    reconstruction = (SCALE * mean - SCALE * clean_moments[:, :4]).square().mean()
    expected = (predicted - target).square().mean() + 0.3 * information + 0.7 * reconstruction
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)
    for came, right in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(came, right, rtol=1e-2, atol=1e-4)
