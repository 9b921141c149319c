"""Would anybody notice? Each known trap of DiffMAC is sprung, and the comparison must fail.

A trap is a change of one place in the source of a function. The comparisons are those of the tests of the networks;
every one also runs unbroken, so that a comparison which always fails would be noticed as well.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import formulas_diffmac as formulas
import pytest

from refbfr_core.models import bottleneck, modulated_unet, modulation, moments
from refbfr_core.models.bottleneck import ManifoldBottleneck
from refbfr_core.models.modulation import FeatureModulation
from refbfr_core.models.moments import RunningMoments
from refbfr_core.training.second_stage import StageTwoNetwork, StageTwoTask

COMPARISONS: dict[str, Callable[[], None]] = {
    "moments": formulas.compare_moments,
    "statistics": formulas.compare_statistics,
    "statistics per place": partial(formulas.compare_statistics, False),
    "modulation": formulas.compare_modulation,
    "channelwise": partial(formulas.compare_modulation, True),
    "tensors": formulas.compare_tensors,
    "network": formulas.compare_network,
    "identity": formulas.compare_bottleneck,
    "noise": partial(formulas.compare_bottleneck, "noise"),
    "none": partial(formulas.compare_bottleneck, "none"),
    "by hand": partial(formulas.compare_bottleneck, "identity", 0.3),
    "per place": partial(formulas.compare_bottleneck, side=3),
    "clamped": formulas.compare_saturated,
    "kl": formulas.compare_kl,
    "printed": formulas.compare_printed,
    "objective": formulas.compare_objective,
    "objective, noise": partial(formulas.compare_objective, "noise", "epsilon"),
}

TRAPS: list[tuple[str, Any, str, str, str, str]] = [
    # moments and latents
    ("encoder without QC", moments, "encode_moments",
     "vae.encode(fold_pixels(vae, x)).latent_dist.parameters", "vae.encoder(fold_pixels(vae, x))", "moments"),
    ("pictures not in network range", moments, "encode_moments",
     "to_network(check_images(images))", "check_images(images)", "moments"),
    ("pixels not folded", moments, "encode_moments",
     "fold_pixels(vae, x)", "x.repeat(1, vae.config.in_channels // 3, 1, 1)", "moments"),
    ("log-variances before means", moments, "latents_of",
     "mean, log_variance = ", "log_variance, mean = ", "moments"),
    ("log-variance taken for the deviation's logarithm", moments, "latents_of",
     "(0.5 * log_variance", "(log_variance", "moments"),
    ("scaling factor twice", moments, "latents_of",
     "mean * scaling_factor", "mean * scaling_factor**2", "moments"),
    ("scaling factor on the mean only", moments, "latents_of",
     "mean = mean + (0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)).exp() * noise",
     "mean = mean + (0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)).exp() * noise / scaling_factor", "moments"),
    ("latents decoded with their scale", moments, "decode_latent",
     "latents / vae.config.scaling_factor", "latents", "moments"),
    # statistics
    ("statistics of the last batch", RunningMoments, "update",
     "self._mean + shift * count / total", "mean", "statistics"),
    ("batches of all sizes count the same", RunningMoments, "update",
     "shift * count / total", "shift / 2", "statistics"),
    ("spread between batches left out", RunningMoments, "update",
     " + shift.square() * self.count * count / total", "", "statistics"),
    ("one statistic for all channels", RunningMoments, "update",
     "(0, 2, 3) if", "(0, 1, 2, 3) if", "statistics"),
    ("per place averaged over places", RunningMoments, "update", "else (0,)", "else (0, 2, 3)", "statistics per place"),
    ("variance for the deviation", RunningMoments, "std", ".sqrt()", "", "statistics"),
    # modulation
    ("residual missing", FeatureModulation, "modulate", "+ shift + h  #", "+ shift  #", "modulation"),
    ("residual normalised", FeatureModulation, "modulate", "+ shift + h  #", "+ shift + normalised  #", "modulation"),
    ("not normalised", FeatureModulation, "modulate", "scale * normalised", "scale * h", "modulation"),
    ("normalised over the batch", FeatureModulation, "modulate",
     "F.instance_norm(h, eps=NORM_EPS)", "F.batch_norm(h, None, None, training=True)", "modulation"),
    ("normalised over channels", FeatureModulation, "modulate",
     "F.instance_norm(h, eps=NORM_EPS)", "F.group_norm(h, 1)", "modulation"),
    ("scale and shift swapped", FeatureModulation, "modulate",
     "scale, shift = self.scales[index](own), self.shifts[index](own)",
     "shift, scale = self.scales[index](own), self.shifts[index](own)", "modulation"),
    ("scale of one plus gamma", FeatureModulation, "modulate",
     "scale * normalised", "(1 + scale) * normalised", "modulation"),
    ("always channelwise", FeatureModulation, "modulate", "if self.config.channelwise:", "if True:", "modulation"),
    ("never channelwise", FeatureModulation, "modulate", "if self.config.channelwise:", "if False:", "channelwise"),
    ("pyramid without SiLU", FeatureModulation, "conditions", "F.silu(conv(x))", "conv(x)", "modulation"),
    ("pyramid shared by all levels", FeatureModulation, "conditions", "maps.append(x)",
     "maps.append(F.avg_pool2d(maps[0], x.shape[-1] and maps[0].shape[-1] // x.shape[-1]) if maps else x)",
     "modulation"),
    ("levels by block, not by size", modulation, "encoder_tensors",
     "found.append((width, level + 1))", "found.append((width, level))", "tensors"),
    ("downsamples forgotten", modulation, "encoder_tensors",
     "if level + 1 < len(widths):", "if False:", "tensors"),
    # the denoiser
    ("modulation on the skips only", modulated_unet, "denoise_modulated",
     "h = modulation.modulate(len(skips), h, maps)\n        skips.append(h)",
     "skips.append(modulation.modulate(len(skips), h, maps))", "network"),
    ("modulation on the next block only", modulated_unet, "denoise_modulated",
     "h = modulation.modulate(len(skips), h, maps)\n        skips.append(h)",
     "skips.append(h)\n        h = modulation.modulate(len(skips) - 1, h, maps)", "network"),
    ("input layer left alone", modulated_unet, "denoise_modulated",
     "x = keep(unet.conv_in(sample))", "x = unet.conv_in(sample)\n    skips.append(x)", "network"),
    ("modulation before attention", modulated_unet, "denoise_modulated",
     "x = resnet(x, embedding)",
     "x = modulation.modulate(len(skips), resnet(x, embedding), maps)", "network"),
    ("two modulations of a level swapped", modulated_unet, "denoise_modulated",
     "modulation.modulate(len(skips), h", "modulation.modulate({1: 2, 2: 1}.get(len(skips), len(skips)), h", "network"),
    ("skips taken from the wrong end", modulated_unet, "denoise_modulated",
     "tuple(skips[-len(block.resnets) :])", "tuple(reversed(skips[-len(block.resnets) :]))", "network"),
    ("timestep of the first picture for all", modulated_unet, "denoise_modulated",
     ".reshape(-1).expand(len(sample))", ".reshape(-1)[:1].expand(len(sample))", "network"),
    ("encoder deaf to the prompt", modulated_unet, "denoise_modulated",
     "x = block.attentions[index](x, encoder_hidden_states=prompt",
     "x = block.attentions[index](x, encoder_hidden_states=0 * prompt", "network"),
    # the bottleneck
    ("lambda and 1 - lambda swapped", ManifoldBottleneck, "forward",
     "share * moments + (1 - share) * compensation", "(1 - share) * moments + share * compensation", "identity"),
    ("compensation added whole", ManifoldBottleneck, "forward", "(1 - share) * compensation", "compensation", "noise"),
    ("normalised input passed on", ManifoldBottleneck, "forward",
     "share * moments +", "share * normalised +", "none"),
    ("lambda from the input as it is", ManifoldBottleneck, "forward",
     "self.conv(normalised)", "self.conv(moments)", "identity"),
    ("logit not clamped", ManifoldBottleneck, "forward", ".clamp(-limit, limit)", "", "clamped"),
    ("share by hand ignored", ManifoldBottleneck, "forward", "if share is None:", "if True:", "by hand"),
    ("statistics of the sample", ManifoldBottleneck, "normalise",
     "(moments - self.mean) / self.floor_std",
     "(moments - moments.mean((2, 3), keepdim=True)) / moments.std((2, 3), keepdim=True)", "identity"),
    ("smallest deviation ignored", ManifoldBottleneck, "floor_std",
     ".clamp_min(self.config.min_std)", "", "identity"),
    ("smallest deviation added", ManifoldBottleneck, "floor_std",
     ".clamp_min(self.config.min_std)", " + self.config.min_std", "identity"),
    ("statistics per place averaged", ManifoldBottleneck, "normalise",
     "moments - self.mean", "moments - self.mean.mean((1, 2), keepdim=True)", "per place"),
    ("scale and shift of the identity swapped", ManifoldBottleneck, "_compensation",
     "self.scale(identity)[..., None, None] * normalised + self.shift(identity)",
     "self.shift(identity)[..., None, None] * normalised + self.scale(identity)", "identity"),
    ("identity applied to the input as it is", ManifoldBottleneck, "_compensation",
     "* normalised + self.shift", "* (normalised * self.floor_std + self.mean) + self.shift", "identity"),
    ("another identity at every place", ManifoldBottleneck, "_compensation",
     "self.shift(identity)[..., None, None]",
     "self.shift(identity)[..., None, None] * torch.linspace(0.5, 1.5, normalised.shape[-1])", "identity"),
    ("identities of the batch mixed up", ManifoldBottleneck, "_compensation",
     "self.scale(identity)", "self.scale(identity.flip(0))", "identity"),
    ("noise without the statistics", ManifoldBottleneck, "_compensation",
     "self.mean + self.floor_std * noise", "noise", "noise"),
    ("noise around zero", ManifoldBottleneck, "_compensation",
     "self.mean + self.floor_std * noise", "self.floor_std * noise", "noise"),
    ("nothing means the mean", ManifoldBottleneck, "_compensation",
     "torch.zeros_like(normalised)", "self.mean.expand_as(normalised)", "none"),
    # the divergence
    ("printed form for the exact", bottleneck, "kl_exact", "-torch.log1p(-share)", "-2 * torch.log1p(-share)", "kl"),
    ("square of the logarithm", bottleneck, "kl_exact", "-torch.log1p(-share)", "-torch.log1p(-share).square()", "kl"),
    ("one half forgotten", bottleneck, "kl_exact", "0.5 * ((1", "1.0 * ((1", "kl"),
    ("lambda not squared with r", bottleneck, "kl_exact",
     "(share * normalised).square()", "share * normalised.square()", "kl"),
    ("price of the share held back", bottleneck, "kl_exact", "-torch.log1p(-share)", "-torch.log(share)", "kl"),
    ("printed form without its difference", bottleneck, "kl_printed", " - torch.log1p(-share)", "", "kl"),
    ("printed form asked for and exact given", ManifoldBottleneck, "forward",
     'if self.config.kl == "exact" else kl_printed', 'if True else kl_printed', "printed"),
    # the objective
    ("predicted noise in the noisy latent", StageTwoTask, "_run",
     'batch["clean"], batch["noise"]',
     'batch["clean"], module(batch["clean"], batch["timesteps"], *map(batch.get, ("moments", "identity", "filling", '
     '"drawn")))[0].detach()', "objective"),
    ("noise of another picture", StageTwoTask, "_run",
     'batch["clean"], batch["noise"]', 'batch["clean"], batch["noise"].roll(1, 0)', "objective"),
    ("condition drawn from the input, not from Z", StageTwoNetwork, "forward",
     "latents_of(z, self.scaling, drawn)", "latents_of(moments, self.scaling, drawn)", "objective"),
    ("condition without scale", StageTwoNetwork, "forward",
     "latents_of(z, self.scaling, drawn)", "latents_of(z, 1.0, drawn)", "objective"),
    ("condition not drawn", StageTwoNetwork, "forward",
     "latents_of(z, self.scaling, drawn)", "latents_of(z, self.scaling)", "objective"),
    ("no gradient into the bottleneck", StageTwoNetwork, "forward",
     "latents_of(z, self.scaling, drawn)", "latents_of(z.detach(), self.scaling, drawn)", "objective"),
    ("reconstruction scaled twice", StageTwoTask, "loss",
     'latents_of(z, self.scaling) - batch["mode"]', 'latents_of(z, self.scaling**2) - batch["mode"]', "objective"),
    ("weights of the losses swapped", StageTwoTask, "loss",
     "recipe.info_weight * information.mean() + recipe.rec_weight * reconstruction",
     "recipe.rec_weight * information.mean() + recipe.info_weight * reconstruction", "objective"),
    ("information summed", StageTwoTask, "loss",
     "recipe.info_weight * information.mean()", "recipe.info_weight * information.sum()", "objective, noise"),
]  # fmt: skip


def spring(patch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str) -> None:
    """Puts a function or property with one place of its source changed where the right one was."""
    found = inspect.getattr_static(owner, name)
    function = inspect.unwrap(found.fget if isinstance(found, property) else found)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{name} has the place to change {source.count(old)} times; adapt the trap."
    made: dict[str, Any] = {}
    exec(compile(source.replace(old, new), f"<{name} changed>", "exec"), dict(vars(inspect.getmodule(function))), made)  # noqa: S102
    patch.setattr(owner, name, made[name])


@pytest.mark.parametrize("name", COMPARISONS)
def test_unbroken(name: str) -> None:
    COMPARISONS[name]()


@pytest.mark.parametrize(
    ("owner", "name", "old", "new", "comparison"), [trap[1:] for trap in TRAPS], ids=[trap[0] for trap in TRAPS]
)
def test_sprung(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, old: str, new: str, comparison: str) -> None:
    spring(monkeypatch, owner, name, old, new)
    with pytest.raises(AssertionError):
        COMPARISONS[comparison]()
