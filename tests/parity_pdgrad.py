"""Comparisons with the arrays recorded from the guided-diffusion code base and PGDiff's fork of it.

Parity tests and mutation tests call the same functions: a mutation test breaks one thing on purpose and expects the
comparison to fail. Networks are converted anew by `load`, and the sampler is looked up in its module at every call, so
that what was broken is what gets compared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_refldm import close
from safetensors.torch import load_file
from torch import Tensor

from refbfr_core.diffusion import (
    Correction,
    StepState,
    adm_timesteps,
    ddpm_update,
    learned,
    make_schedule,
    norm_ratio,
)
from refbfr_core.models.adm_unet import ADMUNet
from refbfr_core.weights import convert

OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 5e-5
STEP_TOLERANCE = 2e-6
RUN_TOLERANCE = 5e-5
GUIDED_TOLERANCE = 1e-4
LAYOUTS = ("updown", "perlevel")
SCHEDULE = make_schedule("pdgrad")
CARRIED = Path(__file__).parent / "fixtures" / "pdgrad_learned.npz"

Arrays = dict[str, Tensor]


def arrays(path: Path) -> Arrays:
    with np.load(path) as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive if archive[key].dtype.kind != "U"}


# --- the network ------------------------------------------------------------------------------------------------------


def keywords(folder: Path, layout: str) -> dict[str, Any]:
    """The recorded configuration as keywords of `convert_adm_unet`."""
    with np.load(folder / f"unet_{layout}_io.npz") as archive:
        config = json.loads(str(archive["config"]))
    return {
        "image_size": config["image_size"],
        "model_channels": config["mc"],
        "channel_mult": config["mult"],
        "num_res_blocks": config["counts"],
        "attention_sizes": config["attn_res"],
        "num_head_channels": config["head_ch"],
        "resblock_updown": config["updown"],
    }


def state(folder: Path, layout: str) -> Arrays:
    return load_file(folder / f"unet_{layout}_state.safetensors")


def load(folder: Path, layout: str) -> ADMUNet:
    return convert.convert_adm_unet(state(folder, layout), **keywords(folder, layout)).requires_grad_(False)


def compare_output(network: ADMUNet, io: Arrays) -> None:
    with torch.no_grad():
        close(network(io["x"], io["t"]).sample, io["y"], OUTPUT_TOLERANCE, "y")


def compare_gradient(network: ADMUNet, io: Arrays) -> None:
    x = io["x"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad((network(x, io["t"]).sample * io["dirn"]).sum(), x)
    close(gradient, io["grad_x"], GRADIENT_TOLERANCE, "grad_x")


# --- single steps -----------------------------------------------------------------------------------------------------


def compare_single_steps(recorded: Arrays, clip: bool = True) -> None:
    """Six steps of the full process from given network outputs: mean, variance, x_0 and, with clamping, the draw."""
    clip_x0, name = (1.0, "pmv_clip1") if clip else (None, "pmv_clip0")
    for row, t in enumerate(recorded["pmv_t"].tolist()):
        one = slice(row, row + 1)
        step = _first_step(recorded, one, t, clip_x0, recorded["pmv_noise"][one])
        still = _first_step(recorded, one, t, clip_x0, torch.zeros_like(recorded["pmv_noise"][one]))
        expected = {key: recorded[f"{name}_{key}"][one] for key in ("mean", "variance", "log_variance", "pred_xstart")}
        close(still.x_prev, expected["mean"], STEP_TOLERANCE, f"mean, t={t}")
        close(step.variance, expected["variance"], STEP_TOLERANCE, f"variance, t={t}")
        # Logarithms of variances down to 1e-4 are about -9: float32 keeps 1e-6 of that.
        close(step.variance.log(), expected["log_variance"], 2e-5, f"log variance, t={t}")
        # x_0 is a small difference of large numbers at t = 999: 1 / sqrt(alpha_bar) = 157 float32 roundings.
        scale = max(1.0, float(expected["pred_xstart"].abs().max()))
        tolerance = 1e-4 * scale if scale > 10.0 else 4e-5 if t > 900 else STEP_TOLERANCE * scale
        close(step.x0, expected["pred_xstart"], tolerance, f"x_0, t={t}")
        if clip:
            close(step.x_prev, recorded["pmv_sample"][one], STEP_TOLERANCE, f"sample, t={t}")


def _first_step(recorded: Arrays, row: slice, t: int, clip_x0: float | None, noise: Tensor) -> StepState:
    steps: list[StepState] = []
    learned.sample_learned(
        lambda x, _: recorded["pmv_model_output"][row],
        recorded["pmv_x"][row],
        [t, t - 1] if t else [0],
        SCHEDULE,
        draw=lambda: noise,
        clip_x0=clip_x0,
        callback=steps.append,
    )
    return steps[0]


# --- whole runs -------------------------------------------------------------------------------------------------------


def compare_run(network: ADMUNet, recorded: Arrays) -> None:
    """Ten steps of the small network, without guidance."""
    timesteps = adm_timesteps(1000, 10)
    assert timesteps[::-1] == recorded["run_map"].tolist()
    steps: list[StepState] = []
    learned.sample_learned(
        lambda x, t: network(x, t).sample,
        recorded["run_xT"],
        timesteps,
        SCHEDULE,
        draw=iter(recorded["run_noise"]).__next__,
        callback=steps.append,
    )
    assert len(steps) == len(recorded["run_sample"])
    for k, step in enumerate(steps):
        where = f"step {k}"
        close(step.x_prev, recorded["run_sample"][k], RUN_TOLERANCE, f"sample, {where}")
        close(step.x0, recorded["run_x0"][k], _x0_tolerance(step.t), f"x_0, {where}")
        close(step.variance.log(), recorded["run_logvar"][k], 1e-4, f"log variance, {where}")
        mean = ddpm_update(step.x_t, step.x0, step.t, step.t_prev, SCHEDULE, noise=torch.zeros_like(step.x_t))
        close(mean, recorded["run_mean"][k], RUN_TOLERANCE, f"mean, {where}")


def compare_guided(network: ADMUNet, recorded: Arrays, count: int) -> None:
    """PGDiff's guided run, with ``count`` passes through the steps it repeats."""
    repeats = learned.Repeats(count, int(recorded["pg_s_start"]), int(recorded["pg_s_end"]))
    steps, gradients = _guided(network, recorded, recorded["run_xT"], 0, f"pg_N{count}_noise", repeats)
    assert len(gradients) == len(recorded[f"pg_N{count}_grads"]), (
        f"the number of passes is off by {len(gradients) - len(recorded[f'pg_N{count}_grads'])}"
    )
    for k, (step, gradient) in enumerate(zip(steps, gradients, strict=True)):
        expected = recorded[f"pg_N{count}_grads"][k]
        close(gradient, expected, 2 * _x0_tolerance(step.t, GUIDED_TOLERANCE), f"gradient, pass {k}")
    arrived = {step.t: step.x_prev for step in steps}  # of repeated passes the last
    for (t, sample), expected in zip(arrived.items(), recorded[f"pg_N{count}_samples"], strict=True):
        close(sample, expected, GUIDED_TOLERANCE, f"guided sample, t={t}")


def compare_guided_ending(network: ADMUNet, recorded: Arrays) -> None:
    """The last two guided steps, begun part-way from the recorded sample.

    The gradient moves the last sample by 4e-5 at most, because the variance there is 1e-4: less than a whole run's
    tolerance. Two steps alone keep to a smaller one.
    """
    steps, _ = _guided(network, recorded, recorded["pg_N1_samples"][-3], 8, "pg_N1_noise")
    close(steps[-1].x_prev, recorded["pg_N1_samples"][-1], 1e-5, "last guided sample")


def _guided(
    network: ADMUNet,
    recorded: Arrays,
    x_start: Tensor,
    first: int,
    noise: str,
    repeats: learned.Repeats | None = None,
) -> tuple[list[StepState], list[Tensor]]:
    """PGDiff's squared error, summed over all values, against a fixed target; its steps and its gradients."""
    gradients: list[Tensor] = []
    steps: list[StepState] = []

    def guidance(step: StepState) -> Correction:
        gradients.append(2.0 * (step.x0 - recorded["pg_target"]))
        return Correction(mean_shift=-float(recorded["pg_scale"]) * step.variance * gradients[-1])

    learned.sample_learned(
        lambda x, t: network(x, t).sample,
        x_start,
        adm_timesteps(1000, 10)[first:],
        SCHEDULE,
        draw=iter(recorded[noise][first:]).__next__,
        guidance=guidance,
        repeats=repeats,
        callback=steps.append,
    )
    return steps, gradients


def _x0_tolerance(t: int, least: float = RUN_TOLERANCE) -> float:
    """What the network's tolerance, and as much again in the sample it reads, leave in x_0: both are multiplied by
    about sqrt(1 / alpha_bar - 1), which is 157 at t = 999."""
    return max(least, 2 * OUTPUT_TOLERANCE * float(SCHEDULE.sqrt_recipm1_alphas_cumprod[t]))


# --- norm-ratio scaling -----------------------------------------------------------------------------------------------


def compare_norm_ratio(recorded: Arrays) -> None:
    x, sample, gradient, scale = (recorded[f"nr_{name}"] for name in ("x", "sample", "grad", "scale"))
    for scope, name in (("batch", "global"), ("batch-channel", "channel"), ("image", "global")):
        factor = norm_ratio.norm_ratio_factor(x, sample, gradient, float(scale), scope)
        close(factor.flatten(), recorded[f"nr_coef_{name}"].flatten(), 1e-6, f"coefficient, {scope}")
        moved = sample + norm_ratio.norm_ratio_shift(x, sample, gradient, float(scale), scope)
        close(moved, recorded[f"nr_out_{name}"], 1e-6, f"sample, {scope}")
