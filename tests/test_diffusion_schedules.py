"""Schedules, spacings and the forward process against the authors' arrays, diffusers and their own definitions.

``fixtures/diffusion.npz`` holds the small arrays of the reference runs: ``refldm__*`` ReF-LDM's schedule and timesteps,
``adm__*`` guided diffusion's tables and timestep maps, ``run__*`` a crop (2 channels, 8 x 8) of ReF-LDM's DDIM runs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from refbfr_core import diffusion as d
from refbfr_core.errors import ConfigError, UnknownNameError

FIXTURE = Path(__file__).parent / "fixtures" / "diffusion.npz"


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as stored:
        return {name: stored[name] for name in stored.files}


# -- schedules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
    ],
)
def test_refldm_tables_match_the_authors(arrays, name):
    np.testing.assert_allclose(getattr(d.refldm_schedule(), name).numpy(), arrays[f"refldm__{name}"], rtol=5e-6)


def test_refldm_betas_match_in_float64(arrays):
    np.testing.assert_allclose(d.refldm_schedule().betas.numpy(), arrays["refldm__betas_f64"], rtol=1e-12)


def test_guided_diffusion_tables_match_in_float64(arrays):
    schedule = d.make_schedule("pdgrad")
    np.testing.assert_allclose(schedule.alphas_cumprod.numpy(), arrays["adm__alphas_cumprod64"], rtol=1e-12)
    q = [d.posterior(t, t - 1 if t else None, schedule) for t in range(1000)]
    for field, stored in (
        ("variance", "posterior_variance64"),
        ("coef_x0", "posterior_mean_coef1_64"),
        ("coef_xt", "posterior_mean_coef2_64"),
    ):
        # beta = 1 - a / a_prev loses a few digits to cancellation where beta is 1e-4.
        np.testing.assert_allclose([getattr(x, field) for x in q], arrays[f"adm__{stored}"], rtol=1e-10, atol=1e-18)


@pytest.mark.parametrize("name", sorted(d.SCHEDULES))
def test_schedule_agrees_with_diffusers_and_survives_the_round_trip(name):
    schedule = d.make_schedule(name)
    scheduler = d.to_scheduler(schedule)
    level = scheduler.alphas_cumprod.double()
    # The library sums in float32; the cosine rule's last betas are near 1, where float32 keeps fewer digits.
    torch.testing.assert_close(level, schedule.alphas_cumprod, rtol=3e-5 if name == "cosine" else 3e-6, atol=0.0)
    back = d.schedule_from_scheduler(scheduler)
    assert back.set_alpha_to_one == schedule.set_alpha_to_one
    torch.testing.assert_close(back.betas, schedule.betas, rtol=1e-6 if name == "cosine" else 0.0, atol=1e-8)
    exact = d.to_scheduler(schedule, exact=True)
    assert exact.alphas_cumprod.dtype == torch.float64
    assert torch.equal(exact.alphas_cumprod, schedule.alphas_cumprod)
    assert float(exact.final_alpha_cumprod) == schedule.ddim_final_alpha_bar()


def test_custom_betas_reach_diffusers():
    schedule = d.Schedule(torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(d.to_scheduler(schedule).betas.double(), schedule.betas, rtol=1e-6, atol=0.0)
    assert len(schedule) == 3


def test_schedule_is_a_copy_and_frozen():
    betas = torch.full((4,), 0.1)
    schedule = d.Schedule(betas)
    betas[0] = 0.9
    assert float(schedule.betas[0]) == pytest.approx(0.1)
    with pytest.raises(AttributeError):
        schedule.name = "other"


@pytest.mark.parametrize(
    "betas", [torch.zeros(3), torch.ones(3), torch.tensor([0.1, float("nan")]), torch.full((2, 2), 0.1), torch.empty(0)]
)
def test_impossible_betas_are_refused(betas):
    with pytest.raises(ConfigError, match="betas"):
        d.Schedule(betas)


def test_unknown_names_say_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'refldm'"):
        d.make_schedule("reflmd")
    with pytest.raises(UnknownNameError, match="Did you mean 'trailing'"):
        d.make_timesteps("trailling", 1000, 10)
    with pytest.raises(UnknownNameError, match="Did you mean 'leading'"):
        d.to_scheduler(d.refldm_schedule(), "leadin")
    with pytest.raises(UnknownNameError, match="Did you mean 'epsilon'"):
        d.eps_and_x0(torch.zeros(1, 1), torch.zeros(1, 1), 0, d.refldm_schedule(), "epsilom")


@pytest.mark.parametrize("count", [0, -5])
def test_schedules_need_timesteps(count):
    with pytest.raises(ConfigError, match="num_train"):
        d.make_schedule("linear", count)


def test_respaced_process_keeps_the_levels_it_visits(arrays):
    schedule = d.make_schedule("pdgrad")
    for spacing, name in (("adm", "50"), ("adm-ddim", "ddim50")):
        short = d.respace(schedule, d.make_timesteps(spacing, 1000, 50))
        np.testing.assert_allclose(short.alphas_cumprod.numpy(), arrays[f"adm__ac64_{name}"], rtol=1e-12)
        np.testing.assert_allclose(short.betas.numpy(), arrays[f"adm__betas64_{name}"], rtol=1e-12)
    with pytest.raises(ConfigError, match="different values"):
        d.respace(schedule, [5, 5])


# -- spacings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [5, 7, 10, 30, 50, 100])
def test_refldm_spacings_match_the_authors(arrays, steps):
    assert d.trailing_timesteps(1000, steps)[::-1] == arrays[f"refldm__uniform_trailing_S{steps}"].tolist()
    assert d.uniform_timesteps(1000, steps)[::-1] == arrays[f"refldm__uniform_S{steps}"].tolist()


def test_trailing_gives_more_steps_than_asked_when_they_do_not_divide():
    assert d.trailing_timesteps(1000, 7) == [999, 857, 715, 573, 431, 289, 147, 5]
    assert len(d.trailing_timesteps(1000, 30)) == 31


def test_trailing_stays_in_range_for_every_count():
    for steps in range(1, 1001):
        timesteps = d.trailing_timesteps(1000, steps)
        assert timesteps[0] == 999
        assert timesteps[-1] >= 0
        assert len(timesteps) >= steps
    assert d.trailing_timesteps(1000, 37)[-1] == 0


@pytest.mark.parametrize("steps", [3, 9, 27, 37, 1000])
def test_uniform_says_where_the_rule_leaves_the_range(steps):
    with pytest.raises(ConfigError, match="timestep 1000"):
        d.uniform_timesteps(1000, steps)


@pytest.mark.parametrize("steps", [5, 10, 50, 100])
def test_spacings_equal_diffusers_where_they_should(steps):
    schedule = d.refldm_schedule()
    for own, spacing, offset in (
        (d.trailing_timesteps(1000, steps), "trailing", 0),
        (d.uniform_timesteps(1000, steps), "leading", 1),
        (d.leading_timesteps(1000, steps), "leading", 0),
    ):
        scheduler = d.to_scheduler(schedule, spacing, steps_offset=offset)
        scheduler.set_timesteps(steps)
        assert own == scheduler.timesteps.tolist()


@pytest.mark.parametrize("count", [250, 100, 50, 10, 21, 23, 31])
def test_guided_diffusion_spacing_matches_the_authors(arrays, count):
    assert d.adm_timesteps(1000, count)[::-1] == arrays[f"adm__map_{count}"].tolist()


@pytest.mark.parametrize("count", [250, 100, 50, 10])
def test_guided_diffusion_ddim_spacing_matches_the_authors(arrays, count):
    assert d.adm_ddim_timesteps(1000, count)[::-1] == arrays[f"adm__map_ddim{count}"].tolist()


def test_only_62_counts_have_a_whole_stride():
    legal = []
    for count in range(1, 1001):
        try:
            timesteps = d.adm_ddim_timesteps(1000, count)
        except ConfigError:
            continue
        assert len(timesteps) == count
        legal.append(count)
    assert len(legal) == 62
    with pytest.raises(ConfigError, match="250 and 334"):
        d.adm_ddim_timesteps(1000, 300)


def test_sections_are_spaced_one_by_one():
    # 10 timesteps in sections of 4, 3, 3: all ends kept.
    assert d.adm_timesteps(10, [2, 3, 1]) == [7, 6, 5, 4, 3, 0]
    with pytest.raises(ConfigError, match="between 1 and 3"):
        d.adm_timesteps(10, [2, 2, 4])


def test_diffmac_spacing_keeps_both_ends():
    scheduler = d.to_ddpm_scheduler(d.make_schedule("diffmac"), "linspace")
    scheduler.set_timesteps(50)
    timesteps = d.make_timesteps(d.PAPER_SPACINGS["diffmac"], 1000, 50)
    assert timesteps == scheduler.timesteps.tolist()
    assert (timesteps[0], timesteps[-1]) == (999, 0)


def test_ldbfr_spacing_of_200_steps():
    timesteps = d.make_timesteps(d.PAPER_SPACINGS["ldbfr"], 1000, 200)
    assert timesteps == list(range(996, 0, -5))


@pytest.mark.parametrize("spacing", sorted(d.SPACINGS))
@pytest.mark.parametrize("steps", [0, -1, 1001, 10.0, True])
def test_wrong_step_counts_are_refused(spacing, steps):
    with pytest.raises(ConfigError, match="steps|sections"):
        d.make_timesteps(spacing, 1000, steps)


def test_start_part_way():
    timesteps = d.start_from(d.adm_timesteps(1000, 250), 699)
    assert timesteps[0] <= 699 < d.adm_timesteps(1000, 250)[-len(timesteps) - 1]
    with pytest.raises(ConfigError, match="lowest is 99"):
        d.start_from(d.trailing_timesteps(1000, 10), 50)


# -- forward process ---------------------------------------------------------------------------------------------------


def test_forward_process_matches_stored_arrays(shared_dir):
    with np.load(shared_dir / "parity" / "pdgrad" / "diffusion.npz") as stored:
        x0, eps = torch.from_numpy(stored["q_x0"]), torch.from_numpy(stored["q_eps"])
        for t in (699, 700):
            x_t = d.add_noise(x0, eps, t, d.make_schedule("pdgrad"))
            np.testing.assert_allclose(x_t.numpy(), stored[f"q_xt_{t}"], atol=1e-6)


@pytest.mark.parametrize("t", [0, 500, 999, torch.tensor([0, 999]), torch.tensor(3)])
def test_conversions_invert_each_other(t):
    schedule = d.refldm_schedule()
    x0, eps = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    x_t = d.add_noise(x0, eps, t, schedule)
    v = d.predict_v(x0, eps, t, schedule)
    for found, expected in (
        (d.predict_x0(x_t, eps, t, schedule), x0),
        (d.predict_eps(x_t, x0, t, schedule), eps),
        (d.v_to_x0(x_t, v, t, schedule), x0),
        (d.v_to_eps(x_t, v, t, schedule), eps),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for prediction, output in (("epsilon", eps), ("sample", x0), ("v_prediction", v)):
        for found, expected in zip(d.eps_and_x0(output, x_t, t, schedule, prediction), (eps, x0), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_timestep_a_sample_equals_one_by_one():
    schedule = d.refldm_schedule()
    x0, eps = torch.randn(2, 3, 2, 4, 4)
    t = torch.tensor([0, 321, 999])
    together = d.add_noise(x0, eps, t, schedule)
    for i in range(3):
        assert torch.equal(together[i : i + 1], d.add_noise(x0[i : i + 1], eps[i : i + 1], int(t[i]), schedule))


def test_half_precision_keeps_its_dtype_but_computes_wide():
    schedule = d.refldm_schedule()
    x0, eps = torch.randn(2, 2, 3, 4, 4)
    half = d.add_noise(x0.bfloat16(), eps.bfloat16(), 999, schedule)
    wide = d.add_noise(x0.bfloat16().float(), eps.bfloat16().float(), 999, schedule)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, wide.bfloat16())


def test_gradients_flow_through_the_estimate():
    x_t, eps = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4, requires_grad=True)
    schedule = d.refldm_schedule()
    d.predict_x0(x_t, eps, 500, schedule).sum().backward()
    expected = -float(schedule.sqrt_recipm1_alphas_cumprod[500])
    torch.testing.assert_close(eps.grad, torch.full_like(eps, expected), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("t", [-1, 1000, torch.tensor([0, 1000]), torch.tensor([-1, 0])])
def test_timesteps_out_of_range_are_refused(t):
    with pytest.raises(ConfigError, match=r"outside 0\.\.999"):
        d.add_noise(torch.zeros(2, 1), torch.zeros(2, 1), t, d.refldm_schedule())


@pytest.mark.parametrize(
    ("t", "message"), [(torch.tensor([1, 2, 3]), "one a sample"), (torch.tensor([1.0, 2.0]), "expected integers")]
)
def test_wrong_timestep_tensors_are_refused(t, message):
    with pytest.raises(ConfigError, match=message):
        d.add_noise(torch.zeros(2, 1), torch.zeros(2, 1), t, d.refldm_schedule())


def test_mismatching_shapes_are_refused():
    with pytest.raises(ConfigError, match=r"noise has \(1, 4\)"):
        d.add_noise(torch.zeros(2, 4), torch.zeros(1, 4), 3, d.refldm_schedule())
