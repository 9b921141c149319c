"""Training a small perceptual network without a picture from outside: features that see, distances that rank.

VGG's features became perceptual by recognising photographs, and LPIPS weighted them by people's answers to "which of
the two is nearer to this one?" (Zhang et al., CVPR 2018). Drawn faces offer both without asking anybody. The trunk is
told to see: what a face was drawn from, where its landmarks are, and how a picture was ruined. Features and channel
weights together answer comparisons whose answer is known by construction:

1. the same damage in two doses: the smaller dose is nearer;
2. a harmless change (two pixels of shift, a little turn, exposure) is nearer than damage;
3. the same face is nearer than another person's, both changed harmlessly or ruined in exactly the same way.

On drawn faces squared pixel differences answer the first and the third question just as well (`perceptual_report`); it
is the second that has to be learned.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refbfr_core.degradation import Degradation, DegradationRecord, apply_record
from refbfr_core.faces.dataset import FaceCache
from refbfr_core.images import to_network
from refbfr_core.models import PerceptualFeatures
from refbfr_core.models.perceptual import feature_distances
from refbfr_core.training.data import jitter_colour, pictures, share_of
from refbfr_core.training.distortions import HARMFUL, HARMLESS, shake
from refbfr_core.training.loop import Batch, Metrics, TrainingState
from refbfr_core.training.randomness import numbers, shuffled
from refbfr_core.training.recipes import PerceptualRecipe

SEVERITY, HARM, PERSON = range(3)
OTHER_PERSON = 0.5
"""Mean distance of two people's pictures that `PerceptualTask.finish` sets; LPIPS has no unit of its own."""
RUIN_TARGETS = 4


class SeeingFeatures(nn.Module):
    """A perceptual network and the heads that exist during training only.

    ``forward(images)``: (B, 3, H, W) in [-1, 1] to the weighted features, the content (B, content) seen in the last
    stage, and the damage (B, 4) seen in mean and spread of every channel of every stage.
    """

    def __init__(self, network: PerceptualFeatures, content: int) -> None:
        super().__init__()
        self.network = network
        widths = network.config.widths
        self.content = nn.Linear(16 * widths[-1], content)
        self.ruin = nn.Sequential(nn.Linear(2 * sum(widths), 64), nn.ReLU(), nn.Linear(64, RUIN_TARGETS))

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """See the class."""
        taps = self.network(images)
        layout = F.adaptive_avg_pool2d(taps[-1].float(), 4).flatten(1)
        texture = torch.cat([f(tap.float().flatten(2)) for tap in taps for f in (_mean, _spread)], dim=1)
        return self.network.weigh(taps), self.content(layout), self.ruin(texture)


class PerceptualTask:
    """Train a `PerceptualFeatures` on comparisons of drawn faces."""

    def __init__(self, recipe: PerceptualRecipe, train: FaceCache, val: FaceCache) -> None:
        self.recipe = recipe
        # Asked for once: a cache looks at its files every time.
        self.images, self.landmarks, self.identity, self.val = train.images, train.landmarks, train.identity, val
        self.facts: dict[str, Any] = {"people": len(self.images), "faces": train.folder.name}
        self.memory: dict[str, Tensor] = {}
        content = self.identity[0].size + self.landmarks[0][0].size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = PerceptualFeatures(recipe.widths, recipe.first_stride)
            self.module = SeeingFeatures(self.network, content)
        self.degradations = [Degradation.preset(name) for name in recipe.degradations]
        self.visible = [Degradation.preset(name) for name in recipe.visible]

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """Comparisons: ``images`` (3b, 3, H, W) in [-1, 1], first b faces, then b nearer and b farther pictures.

        ``content`` (b, N): what the faces were drawn from and where their landmarks are, about within [-1, 1].
        ``ruin`` (3b, 4): the damage done to every picture, see `ruin_targets`. ``question`` (b,): 0, 1 or 2.
        """
        recipe, count = self.recipe, len(self.images)
        part = share_of(rank, world, recipe.batch)
        chosen = shuffled(recipe.seed, step, count * recipe.views, recipe.batch)[part]
        people, view = np.divmod(chosen, recipe.views)
        draws = numbers(recipe.seed, 11, step, rank)
        others = (people + draws.integers(1, max(count, 2), len(people))) % count
        face, stranger = pictures(self.images, people, view), pictures(self.images, others, view)
        shaken = harmless(torch.cat([face, stranger]), draws).split(len(face))
        question = draws.choice(3, len(face), p=recipe.shares)
        near, far, ruin = [], [], torch.zeros(3, len(face), RUIN_TARGETS)
        for i, asked in enumerate(question):
            presets = self.visible if asked == HARM else self.degradations
            degradation = presets[int(draws.integers(len(presets)))]
            record = degradation.draw(1, seeds=[int(draws.integers(2**31))])[0]
            dose, same_damage = draws.uniform(0.15, 0.7), draws.random() < 0.5
            if asked == SEVERITY:
                less = weaker(record, dose)
                near.append(ruined(face[i], less))
                far.append(ruined(face[i], record))
                ruin[1, i], ruin[2, i] = ruin_targets(less), ruin_targets(record)
            elif asked == HARM:
                near.append(shaken[0][i])
                far.append(ruined(face[i], record))
                ruin[2, i] = ruin_targets(record)
            elif same_damage:
                near.append(ruined(face[i], record))
                far.append(ruined(stranger[i], record))
                ruin[1:, i] = ruin_targets(record)
            else:
                near.append(shaken[0][i])
                far.append(shaken[1][i])
        identity = torch.from_numpy(self.identity[(people,)]).float()
        landmarks = torch.from_numpy(self.landmarks[people, view]).float()
        content = torch.cat([identity, (landmarks / recipe.resolution * 4 - 2).flatten(1)], dim=1)
        return {
            "images": to_network(torch.cat([face, torch.stack(near), torch.stack(far)])),
            "content": content, "ruin": ruin.flatten(0, 1), "question": torch.from_numpy(question),
        }  # fmt: skip

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Logistic loss of the comparisons, and squared errors of what the heads see."""
        recipe, rows = self.recipe, len(batch["images"]) // 3
        features, content, ruin = module(batch["images"])
        anchor, near, far = zip(*(layer.split(rows) for layer in features), strict=True)
        nearer, farther = feature_distances(anchor, near).sum(1), feature_distances(anchor, far).sum(1)
        # The logarithm makes the comparison independent of the unit of the distance.
        margin = (farther + 1e-8).log() - (nearer + 1e-8).log()
        ranking = F.softplus(-margin / recipe.temperature).mean()
        see_content = F.mse_loss(content[:rows].float(), batch["content"])
        see_ruin = F.mse_loss(ruin.float(), batch["ruin"])
        right = (margin.detach() > 0).float()
        metrics = {"ranking": ranking.detach(), "content": see_content, "ruin": see_ruin, "right": right.mean()}
        for name, asked in (("severity", SEVERITY), ("harm", HARM), ("person", PERSON)):
            here = (batch["question"] == asked).float()
            metrics[f"right_{name}"] = torch.stack([(right * here).sum(), here.sum()])
        return ranking + recipe.content_weight * see_content + recipe.ruin_weight * see_ruin, metrics

    def before_step(self, step: int, state: TrainingState) -> None:
        """Nothing changes between steps."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Comparisons on unseen people with unseen kinds of distortion, against plain pixel differences."""
        return perceptual_report(network, self.val)

    @torch.no_grad()
    def finish(self, network: nn.Module) -> None:
        """Scale the channel weights so that two training people's pictures are `OTHER_PERSON` apart on average."""
        count = min(64, len(self.images))
        faces = to_network(pictures(self.images, range(count), [0] * count)).to(network.device)
        mean = network.perceptual_distance(faces, faces.roll(1, 0)).mean()
        for weight in network.channel_weights:
            weight.mul_((OTHER_PERSON / mean.clamp_min(1e-8)).sqrt())

    def about(self) -> dict[str, Any]:
        """Words for the model card."""
        return {
            "summary": "Perceptual features and distance for drawn faces, the toy twin of LPIPS's VGG16 in PDGrad.",
            "limits": "Trained on procedurally drawn faces and comparisons with a constructed answer; nobody was asked "
            "which pictures look alike, and it knows nothing about photographs.",
        }


def harmless(images: Tensor, draws: np.random.Generator) -> Tensor:
    """Change pictures (B, 3, H, W) in [0, 1] so little that everybody would call them the same."""
    moved = shake(images, draws)
    tinted = jitter_colour(moved, draws, strength=0.08, grey=0.0)
    which = torch.from_numpy(draws.random((len(images), 1, 1, 1)) < 0.5)
    return torch.where(which, tinted, moved)


def weaker(record: DegradationRecord, dose: float) -> DegradationRecord:
    """The same damage with every parameter moved towards none: `dose` 1 is the record itself, 0 hardly any damage."""
    changes: dict[str, Any] = {"noise_sigma": dose * record.noise_sigma}
    if record.sigma_x is not None:
        changes |= {"sigma_x": dose * record.sigma_x, "sigma_y": dose * record.sigma_y}
    if record.scale is not None:
        changes["scale"] = record.scale**dose
    if record.jpeg_quality is not None:
        quality = 100 - dose * (100 - record.jpeg_quality)
        changes |= {"jpeg_quality_drawn": quality, "jpeg_quality": int(quality)}
    return replace(record, **changes)


def ruined(picture: Tensor, record: DegradationRecord) -> Tensor:
    """Apply a record to one picture (3, H, W) in [0, 1]."""
    return torch.from_numpy(apply_record(picture.permute(1, 2, 0).numpy(), record)).permute(2, 0, 1)


def ruin_targets(record: DegradationRecord) -> Tensor:
    """(4,): log(1 + mean blur width in pixels), log of the down-sampling, noise / 20, and lost JPEG quality / 50."""
    width = 0.0 if record.sigma_x is None else (record.sigma_x + record.sigma_y) / 2
    scale = 1.0 if record.scale is None else max(record.scale, 1.0)
    noise = 0.0 if record.noise is None else record.noise_sigma
    quality = 100 if record.jpeg_quality is None else record.jpeg_quality
    return torch.tensor([np.log1p(width), np.log(scale), noise / 20, (100 - quality) / 50], dtype=torch.float32)


def pixel_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of two of (B, 3, H, W): (B,). What a perceptual distance has to be better than."""
    return (a - b).square().mean((1, 2, 3))


@torch.no_grad()
def perceptual_report(network: nn.Module, val: FaceCache) -> dict[str, float]:
    """How often distances rank pictures of unseen people rightly, for `network` and for squared pixel differences.

    The distortions are those of `refbfr_core.training.distortions`, none of which was trained on. ``severity``: a weak
    dose is nearer than a strong one; ``harm``: each harmless change is nearer than the strong dose of each distortion;
    ``person``: the harmless change is nearer than the next person's picture, and so is the weak dose of each distortion
    than the next person's picture with the same one. Means over kinds; ties count half. ``*_pixels``: the same for
    `pixel_distance`.
    """
    people = range(len(val.images))
    clean = pictures(val.images, people, [0] * len(people))

    def perceptual(a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(*(to_network(x).to(network.device).split(32) for x in (a, b)), strict=True)
        return torch.cat([network.perceptual_distance(*pair) for pair in pairs]).cpu()

    report = {}
    for suffix, distance in (("", perceptual), ("_pixels", pixel_distance)):
        for name, answers in comparisons(clean, distance).items():
            report[f"{name}{suffix}"] = float(np.mean(list(answers.values())))
    return report


def comparisons(clean: Tensor, distance: Any, seed: int = 0) -> dict[str, dict[str, float]]:
    """For every question and kind, the share of faces (B, 3, H, W) in [0, 1] that ``distance(a, b) -> (B,)`` ranks
    rightly; see `perceptual_report`."""
    harm = {name: [f(clean, dose, numbers(seed, 1)) for dose in doses] for name, (f, *doses) in HARMFUL.items()}
    calm = {name: f(clean, dose, numbers(seed, 2)) for name, (f, dose) in HARMLESS.items()}
    far = {name: [distance(clean, picture) for picture in doses] for name, doses in harm.items()}
    near = {name: distance(clean, picture) for name, picture in calm.items()}
    stranger = clean.roll(1, 0)
    answers: dict[str, dict[str, float]] = {"severity": {}, "harm": {}, "person": {}}
    for name, (weak, strong) in far.items():
        answers["severity"][name] = _share(weak, strong)
        answers["harm"] |= {f"{calmly}, {name}": _share(near[calmly], strong) for calmly in near}
        other = HARMFUL[name][0](stranger, HARMFUL[name][1], numbers(seed, 1))
        answers["person"][name] = _share(weak, distance(clean, other))
    answers["person"] |= {name: _share(value, distance(clean, stranger)) for name, value in near.items()}
    return answers


def _share(near: Tensor, far: Tensor) -> float:
    return float(((near < far).double() + 0.5 * (near == far).double()).mean())


def _mean(values: Tensor) -> Tensor:
    return values.mean(2)


def _spread(values: Tensor) -> Tensor:
    return (values.var(2, unbiased=False) + 1e-6).sqrt()
