"""The samplers against diffusers, the authors' recorded DDIM runs, and an oracle that knows the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from refbfr_core import diffusion as d
from refbfr_core.errors import ConfigError, UnknownNameError

FIXTURE = Path(__file__).parent / "fixtures" / "diffusion.npz"
SHAPE = (2, 3, 6, 6)


def smooth_network(x_t: torch.Tensor, t: int) -> torch.Tensor:
    """A stand-in for a network: bounded, nonlinear, depends on the timestep, treats images one by one."""
    return torch.sin(1.7 * x_t + 0.003 * t) + 0.3 * torch.tanh(x_t.flip(-1))


def oracle(x0: torch.Tensor, schedule: d.Schedule) -> d.Predict:
    """The perfect noise predictor for one known picture."""
    return lambda x_t, t: d.predict_eps(x_t, x0, t, schedule)


def start(seed: int = 0) -> tuple[torch.Tensor, list[torch.Generator]]:
    generators = d.image_generators(seed, SHAPE[0])
    return d.image_noise(generators, SHAPE[1:]), generators


# -- against diffusers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [5, 10, 50, 100])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["refldm", "linear"])
def test_own_ddim_step_equals_diffusers(name, eta, spacing, steps):
    schedule = d.make_schedule(name)
    scheduler = d.to_scheduler(schedule, spacing, exact=True)
    scheduler.set_timesteps(steps)
    timesteps = d.make_timesteps(spacing, 1000, steps)
    x = torch.randn(SHAPE)
    for t, t_prev in zip(timesteps, d.previous_timesteps(timesteps), strict=True):
        eps, noise = smooth_network(x, t), torch.randn(SHAPE)
        own = d.ddim_step(x, eps, t, t_prev, schedule, eta=eta, noise=noise)
        library = scheduler.step(eps, t, x, eta=eta, variance_noise=noise if eta else None)
        scale = float(library.prev_sample.abs().max())
        torch.testing.assert_close(own.x_prev, library.prev_sample, rtol=0.0, atol=2e-6 * scale)
        scale = float(library.pred_original_sample.abs().max())
        torch.testing.assert_close(own.x0, library.pred_original_sample, rtol=0.0, atol=2e-6 * scale)
        x = own.x_prev


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_float32_scheduler_stays_close_over_a_whole_run(spacing):
    x_T, _ = start()
    schedule = d.refldm_schedule()
    own = d.sample(smooth_network, x_T, d.make_timesteps(spacing, 1000, 50), schedule)
    library = d.sample_with_scheduler(smooth_network, x_T, d.to_scheduler(schedule, spacing), 50)
    # The stand-in amplifies: compare with the size of the sample. The library's alpha_bar is 2e-6 off, relatively.
    torch.testing.assert_close(own, library, rtol=0.0, atol=1e-5 * float(own.abs().max()))


@pytest.mark.parametrize("clip", [None, 0.8])
def test_loops_draw_the_same_noise_as_diffusers(clip):
    schedule = d.make_schedule("pdgrad")
    timesteps = d.adm_timesteps(1000, 10)
    x_T, generators = start()
    own = d.sample_ancestral(smooth_network, x_T, timesteps, schedule, generators=generators, clip_x0=clip)
    x_T, generators = start()
    clipping = {} if clip is None else {"clip_sample": True, "clip_sample_range": clip}
    scheduler = d.to_ddpm_scheduler(schedule, exact=True, **clipping)
    library = d.sample_with_scheduler(smooth_network, x_T, scheduler, timesteps=timesteps, generators=generators)
    torch.testing.assert_close(own, library, rtol=0.0, atol=2e-6 * float(own.abs().max()))


@pytest.mark.parametrize(("variance", "library"), [("small", "fixed_small"), ("large", "fixed_large")])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_own_ancestral_step_equals_diffusers(spacing, variance, library):
    schedule = d.make_schedule("pdgrad")
    scheduler = d.to_ddpm_scheduler(schedule, spacing, exact=True, variance_type=library)
    scheduler.set_timesteps(20)
    timesteps = scheduler.timesteps.tolist()
    for t, t_prev in zip(timesteps, d.previous_timesteps(timesteps), strict=True):
        x, eps = torch.randn(2, *SHAPE)
        noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(t))
        own = d.ddpm_step(x, eps, t, t_prev, schedule, noise=noise, variance=variance)
        other = scheduler.step(eps, t, x, generator=torch.Generator().manual_seed(t)).prev_sample
        torch.testing.assert_close(own.x_prev, other, rtol=2e-6, atol=2e-6)


def test_clipping_equals_diffusers_clipped_output():
    schedule = d.make_schedule("linear")
    scheduler = d.to_scheduler(schedule, exact=True, clip_sample=True)
    scheduler.set_timesteps(10)
    x, eps = torch.randn(2, *SHAPE)
    own = d.ddim_step(x, eps, 799, 699, schedule, clip_x0=1.0)
    library = scheduler.step(eps, 799, x, use_clipped_model_output=True)
    assert float(own.x0.abs().max()) == 1.0
    torch.testing.assert_close(own.x_prev, library.prev_sample, rtol=1e-6, atol=1e-6)


def test_a_multistep_library_solver_runs_and_leaves_the_callers_scheduler_alone():
    from diffusers import DPMSolverMultistepScheduler

    schedule = d.refldm_schedule()
    x0, (x_T, _) = torch.rand(SHAPE) * 2 - 1, start()
    scheduler = DPMSolverMultistepScheduler.from_config(d.to_scheduler(schedule).config)
    before = dict(scheduler.__dict__)
    runs = [d.sample_with_scheduler(oracle(x0, schedule), x_T, scheduler, 12) for _ in range(2)]
    torch.testing.assert_close(runs[0], x0, rtol=0.0, atol=1e-3)
    assert torch.equal(*runs)
    assert scheduler.num_inference_steps is None
    assert scheduler.__dict__.keys() == before.keys()


def test_v_prediction_and_x0_prediction_walk_the_same_path():
    schedule = d.make_schedule("diffmac")
    x_T, _ = start()
    timesteps = d.uniform_timesteps(1000, 10)

    def as_v(x_t: torch.Tensor, t: int) -> torch.Tensor:
        eps = smooth_network(x_t, t)
        return d.predict_v(d.predict_x0(x_t, eps, t, schedule), eps, t, schedule)

    def as_x0(x_t: torch.Tensor, t: int) -> torch.Tensor:
        return d.predict_x0(x_t, smooth_network(x_t, t), t, schedule)

    expected = d.sample(smooth_network, x_T, timesteps, schedule)
    for predict, prediction in ((as_v, "v_prediction"), (as_x0, "sample")):
        found = d.sample(predict, x_T, timesteps, schedule, prediction=prediction)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-4)
        scheduler = d.to_scheduler(schedule, "leading", steps_offset=1, prediction_type=prediction)
        found = d.sample_with_scheduler(predict, x_T, scheduler, 10)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-4)


# -- against the authors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "scale"), [("cfg15", 1.5), ("cfg10", 1.0), ("cfg15_uniform", 1.5)])
def test_refldm_runs_replay_step_by_step(run, scale):
    """ReF-LDM's sampler on its recorded network outputs; the network itself is tested with the networks."""
    with np.load(FIXTURE) as stored:
        get = {k: torch.from_numpy(stored[f"run__{run}__{k}"]) for k in ("x_t", "pred_x0", "unet_out")}
        recorded = stored[f"run__{run}__timesteps_descending"].tolist()
        pairs = np.stack([stored[f"run__{run}__ddim_alphas"], stored[f"run__{run}__ddim_alphas_prev"]], axis=1)[::-1]
    rule = "uniform" if run.endswith("uniform") else "trailing"
    timesteps = d.make_timesteps(rule, 1000, len(recorded))
    assert timesteps == recorded
    np.testing.assert_allclose(d.alpha_bar_pairs(timesteps, d.refldm_schedule()), pairs, rtol=1e-6)

    outputs = dict(zip(timesteps, get["unet_out"], strict=True))
    predict = d.guided_predict(lambda x, t: outputs[t][-1:], lambda x, t: outputs[t][:1], scale)
    trace = d.Trace(keep=("x0", "x_prev"))
    final = d.sample(predict, get["x_t"][0], timesteps, d.refldm_schedule(), trace=trace)
    for name, expected in (("x_prev", get["x_t"][1:]), ("x0", get["pred_x0"])):
        for found, wanted in zip(trace.stack(name), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0.0, atol=2e-6 * float(wanted.abs().max()))
    torch.testing.assert_close(final, get["x_t"][-1], rtol=0.0, atol=2e-6 * float(final.abs().max()))


def test_ancestral_mean_matches_guided_diffusion(shared_dir):
    schedule = d.make_schedule("pdgrad")
    with np.load(shared_dir / "parity" / "pdgrad" / "diffusion.npz") as stored:
        x, output = torch.from_numpy(stored["pmv_x"]), torch.from_numpy(stored["pmv_model_output"])
        mean, x0 = torch.from_numpy(stored["pmv_clip1_mean"]), torch.from_numpy(stored["pmv_clip1_pred_xstart"])
        rows = list(enumerate(stored["pmv_t"].tolist()))
    for row, t in rows:
        one = slice(row, row + 1)
        step = d.ddpm_step(
            x[one],
            output[one, :3],
            t,
            t - 1 if t else None,
            schedule,
            noise=torch.zeros_like(x[one]),
            clip_x0=1.0,
        )
        torch.testing.assert_close(step.x_prev, mean[one], rtol=0.0, atol=2e-6)
        # x_0 is a small difference of large numbers at t = 999: 1 / sqrt(alpha_bar) = 157 float32 roundings.
        torch.testing.assert_close(step.x0, x0[one], rtol=0.0, atol=4e-5 if t > 900 else 2e-6)


# -- against the truth -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 5, 30, 50])
def test_oracle_recovers_the_picture(steps):
    x_T, generators = start()
    x0 = torch.rand(SHAPE) * 2 - 1
    schedule = d.make_schedule("pdgrad")
    predict = oracle(x0, schedule)
    timesteps = d.trailing_timesteps(1000, steps)
    for found in (
        d.sample(predict, x_T, timesteps, schedule),
        d.sample(predict, x_T, timesteps, schedule, eta=1.0, generators=generators),
        d.sample_ancestral(predict, x_T, timesteps, schedule, generators=generators),
    ):
        torch.testing.assert_close(found, x0, rtol=0.0, atol=3e-4)


def test_refldm_ends_on_the_first_noise_level_not_on_the_clean_sample():
    x_T, _ = start()
    x0 = torch.rand(SHAPE) * 2 - 1
    schedule = d.refldm_schedule()
    trace = d.Trace(keep=("x0", "eps"))
    found = d.sample(oracle(x0, schedule), x_T, d.trailing_timesteps(1000, 10), schedule, trace=trace)
    a = float(schedule.alphas_cumprod[0])
    assert a == pytest.approx(0.9985)
    torch.testing.assert_close(trace.stack("x0")[-1], x0, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(found, a**0.5 * x0 + (1 - a) ** 0.5 * trace.stack("eps")[-1], rtol=0.0, atol=1e-4)
    assert float((found - x0).abs().max()) > 0.02


def test_full_noise_ddim_is_ancestral_sampling():
    schedule = d.make_schedule("linear")
    x, eps, noise = torch.randn(3, *SHAPE)
    timesteps = d.trailing_timesteps(1000, 20)
    for t, t_prev in zip(timesteps[:-1], timesteps[1:], strict=True):
        ddim = d.ddim_step(x, eps, t, t_prev, schedule, eta=1.0, noise=noise)
        ddpm = d.ddpm_step(x, eps, t, t_prev, schedule, noise=noise)
        scale = float(ddim.x_prev.abs().max())
        torch.testing.assert_close(ddim.x_prev, ddpm.x_prev, rtol=0.0, atol=2e-6 * scale)
        assert d.ddim_sigma(t, t_prev, schedule, 1.0) ** 2 == pytest.approx(d.posterior(t, t_prev, schedule).variance)


def test_starting_part_way_from_a_noised_estimate():
    schedule = d.make_schedule("pdgrad")
    x0 = torch.rand(SHAPE) * 2 - 1
    timesteps = d.start_from(d.adm_timesteps(1000, 100), 699)
    x_tau = d.add_noise(x0, torch.randn(SHAPE), timesteps[0], schedule)
    found = d.sample(oracle(x0, schedule), x_tau, timesteps, schedule)
    torch.testing.assert_close(found, x0, rtol=0.0, atol=1e-4)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eta": 1.5, "noise": torch.zeros(SHAPE)}, "eta is 1.5"),
        ({"eta": 1.0}, "needs noise"),
        ({"eta": 1.0, "noise": torch.zeros(1, 3, 6, 6)}, "expected equal shapes"),
        ({"t_prev": 500}, "timesteps descend"),
        ({"t": 1000}, "outside"),
        ({"eps": torch.zeros(1, 3, 6, 6)}, "expected equal shapes"),
        ({"clip_x0": 0.0}, "positive bound"),
    ],
)
def test_impossible_steps_are_refused(change, message):
    settings = {"x_t": torch.zeros(SHAPE), "eps": torch.zeros(SHAPE), "t": 500, "t_prev": 400} | change
    with pytest.raises(ConfigError, match=message):
        d.ddim_step(schedule=d.refldm_schedule(), **settings)


def test_impossible_ancestral_steps_are_refused():
    x, schedule = torch.zeros(SHAPE), d.refldm_schedule()
    with pytest.raises(ConfigError, match="needs noise"):
        d.ddpm_step(x, x, 500, 400, schedule)
    with pytest.raises(UnknownNameError, match="Did you mean 'small'"):
        d.ddpm_step(x, x, 500, 400, schedule, noise=x, variance="smal")
