"""The loops: guidance, callbacks, traces, and how they fail."""

from __future__ import annotations

import weakref

import pytest
import torch

from refbfr_core import diffusion as d
from refbfr_core.errors import ConfigError, UnknownNameError

SHAPE = (2, 3, 4, 4)
TIMESTEPS = d.trailing_timesteps(1000, 5)
SCHEDULE = d.refldm_schedule()


def network(x_t: torch.Tensor, t: int) -> torch.Tensor:
    return torch.tanh(x_t) * (1 - t / 2000)


def start(n: int = 2) -> tuple[torch.Tensor, list[torch.Generator]]:
    generators = d.image_generators(0, n)
    return d.image_noise(generators, SHAPE[1:]), generators


def ddim(predict: d.Predict = network, timesteps: list[int] = TIMESTEPS, **keywords) -> torch.Tensor:
    return d.sample(predict, start()[0], timesteps, SCHEDULE, **keywords)


# -- classifier-free guidance ------------------------------------------------------------------------------------------


def counting(calls: list[str], name: str, value: float) -> d.Predict:
    def predict(x_t: torch.Tensor, t: int) -> torch.Tensor:
        calls.append(name)
        return torch.full_like(x_t, value)

    return predict


def test_guidance_scale_one_never_evaluates_the_unconditional_branch():
    calls: list[str] = []
    predict = d.guided_predict(counting(calls, "cond", 2.0), counting(calls, "uncond", 1.0), 1.0)
    ddim(predict)
    assert calls == ["cond"] * 5


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1.0), (0.5, 1.5), (1.5, 2.5), (3.0, 4.0)])
def test_guidance_extrapolates_from_unconditional_to_conditional(scale, expected):
    calls: list[str] = []
    predict = d.guided_predict(counting(calls, "cond", 2.0), counting(calls, "uncond", 1.0), scale)
    assert torch.equal(predict(torch.zeros(SHAPE), 5), torch.full(SHAPE, expected))
    assert sorted(calls) == ["cond", "uncond"]

    def both(x_t: torch.Tensor, t: int) -> torch.Tensor:
        return torch.cat([torch.full_like(x_t, 1.0), torch.full_like(x_t, 2.0)])

    joint = d.guided_predict(counting(calls, "cond", 2.0), counting(calls, "uncond", 1.0), scale, both=both)
    assert torch.equal(joint(torch.zeros(SHAPE), 5), torch.full(SHAPE, expected))
    assert len(calls) == 2


def test_guidance_refuses_mismatching_branches():
    with pytest.raises(ConfigError, match="expected equal shapes"):
        d.classifier_free_guidance(torch.zeros(2, 3), torch.zeros(1, 3), 1.5)
    with pytest.raises(ConfigError, match="2 rows for a batch of 2"):
        d.guided_predict(network, network, 1.5, both=network)(torch.zeros(SHAPE), 5)


# -- guidance hook -----------------------------------------------------------------------------------------------------


def test_a_hook_that_returns_none_changes_nothing():
    assert torch.equal(ddim(), ddim(guidance=lambda state: None))
    assert torch.equal(ddim(), ddim(guidance=lambda state: d.Correction()))


def test_replacing_eps_or_x0_is_the_same_change():
    target = torch.rand(SHAPE) * 2 - 1

    def as_x0(state: d.StepState) -> d.Correction:
        return d.Correction(x0=0.5 * (state.x0 + target))

    def as_eps(state: d.StepState) -> d.Correction:
        return d.Correction(eps=d.predict_eps(state.x_t, 0.5 * (state.x0 + target), state.t, SCHEDULE))

    by_x0, by_eps = ddim(guidance=as_x0), ddim(guidance=as_eps)
    torch.testing.assert_close(by_x0, by_eps, rtol=0.0, atol=1e-4)
    assert (by_x0 - target).abs().mean() < (ddim() - target).abs().mean()


@pytest.mark.parametrize("loop", ["ancestral", "library"])
def test_mean_shift_is_the_papers_guided_step(loop):
    """PDGrad eq. 9: the mean moves by -s * variance * gradient; everything random stays as it was."""
    schedule = d.make_schedule("pdgrad")
    gradient = torch.randn(SHAPE)
    seen: list[d.StepState] = []

    def hook(state: d.StepState) -> d.Correction | None:
        seen.append(state)
        return d.Correction(mean_shift=-0.1 * gradient) if state.t_prev is not None else None

    def run(guidance) -> list[torch.Tensor]:
        x_T, generators = start()
        states: list[d.StepState] = []
        settings = {"generators": generators, "guidance": guidance, "callback": states.append}
        if loop == "ancestral":
            d.sample_ancestral(network, x_T, [999, 998], schedule, **settings)
        else:
            d.sample_with_scheduler(network, x_T, d.to_ddpm_scheduler(schedule), timesteps=[999, 998], **settings)
        return [s.x_prev for s in states]

    plain, guided = run(None), run(hook)
    torch.testing.assert_close(guided[0] - plain[0], -0.1 * gradient, rtol=0.0, atol=1e-6)
    assert [s.x_prev for s in seen] == [None, None]
    if loop == "ancestral":
        assert seen[0].variance == d.posterior(999, 998, schedule).variance > 0


def test_hooks_may_open_gradients():
    def hook(state: d.StepState) -> d.Correction:
        assert not torch.is_grad_enabled()
        with torch.enable_grad():
            x0 = state.x0.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(x0.square().sum(), x0)
        return d.Correction(x0=state.x0 - 0.1 * gradient)

    assert not ddim(guidance=hook).requires_grad


def test_hooks_are_checked():
    with pytest.raises(ConfigError, match="not both"):
        d.Correction(eps=torch.zeros(1), x0=torch.zeros(1))
    with pytest.raises(ConfigError, match="returned Tensor"):
        ddim(guidance=lambda state: state.x0)
    with pytest.raises(ConfigError, match="returned x0 of shape"):
        ddim(guidance=lambda state: d.Correction(x0=state.x0[:1]))
    with pytest.raises(ConfigError, match="statistic 'k'"):
        ddim(guidance=lambda state: d.Correction(stats={"k": torch.zeros(5)}))
    with pytest.raises(d.NonFiniteError, match="guidance hook's mean_shift.*step 1 of 5"):
        ddim(guidance=lambda state: d.Correction(mean_shift=state.x0 / 0))


# -- failures of the network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_network_that_breaks_stops_at_that_step(bad):
    seen: list[int] = []

    def predict(x_t: torch.Tensor, t: int) -> torch.Tensor:
        seen.append(t)
        output = network(x_t, t)
        if t == TIMESTEPS[2]:
            output[1, 0, 0, 0] = bad
        return output

    with pytest.raises(d.NonFiniteError, match=rf"step 3 of 5 \(timestep {TIMESTEPS[2]}\), for image\(s\) \[1\]"):
        ddim(predict)
    assert seen == TIMESTEPS[:3]


def test_a_network_of_the_wrong_kind_is_refused():
    with pytest.raises(ConfigError, match="return its .sample"):
        ddim(lambda x_t, t: (x_t,))
    with pytest.raises(ConfigError, match="Split off learned variances"):
        ddim(lambda x_t, t: torch.cat([x_t, x_t], dim=1))


# -- bad input of the loops --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [([], "no timesteps"), ([5, 5], "strictly descending"), ([5, 9], "strictly descending"), ([1000], "outside")],
)
def test_wrong_timesteps_are_refused(timesteps, message):
    with pytest.raises(ConfigError, match=message):
        ddim(timesteps=timesteps)


@pytest.mark.parametrize(
    "x_T", [torch.zeros(0, 3, 4, 4), torch.zeros(2, 3, 4, 4).long(), torch.tensor(1.0), torch.full(SHAPE, torch.nan)]
)
def test_wrong_start_is_refused(x_T):
    for run in (
        lambda: d.sample(network, x_T, TIMESTEPS, SCHEDULE),
        lambda: d.sample_ancestral(network, x_T, TIMESTEPS, SCHEDULE, generators=d.image_generators(0, 2)),
        lambda: d.sample_with_scheduler(network, x_T, d.to_scheduler(SCHEDULE), 5),
    ):
        with pytest.raises(ConfigError, match="x_T"):
            run()


@pytest.mark.parametrize("generators", [None, 0, [0, 1], torch.Generator(), d.image_generators(0, 3)])
def test_wrong_generators_are_refused(generators):
    with pytest.raises(ConfigError, match="generators"):
        ddim(eta=1.0, generators=generators)
    with pytest.raises(ConfigError, match="generators"):
        d.sample_ancestral(network, start()[0], TIMESTEPS, SCHEDULE, generators=generators)
    with pytest.raises(ConfigError, match="generators"):
        d.sample_with_scheduler(network, start()[0], d.to_ddpm_scheduler(SCHEDULE), 5, generators=generators)


def test_wrong_library_settings_are_refused():
    from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    x_T, generators = start()
    with pytest.raises(ConfigError, match="no argument 'ets'"):
        d.sample_with_scheduler(network, x_T, d.to_scheduler(SCHEDULE), 5, ets=1.0)
    with pytest.raises(ConfigError, match="one of the two"):
        d.sample_with_scheduler(network, x_T, d.to_scheduler(SCHEDULE))
    with pytest.raises(ConfigError, match="takes no list of timesteps"):
        d.sample_with_scheduler(network, x_T, d.to_scheduler(SCHEDULE), timesteps=[5, 3])
    with pytest.raises(ConfigError, match="draws noise"):
        d.sample_with_scheduler(network, x_T, d.to_scheduler(SCHEDULE), 5, eta=1.0)
    with pytest.raises(ConfigError, match="init_noise_sigma"):
        d.sample_with_scheduler(network, x_T, EulerDiscreteScheduler(), 5, generators=generators)
    with pytest.raises(ConfigError, match="no betas"):
        d.sample_with_scheduler(network, x_T, FlowMatchEulerDiscreteScheduler(), 5, generators=generators)
    with pytest.raises(UnknownNameError, match="Did you mean 'v_prediction'"):
        ddim(prediction="v_predict")


# -- callback and trace ------------------------------------------------------------------------------------------------


def test_callback_sees_every_finished_step():
    states: list[d.StepState] = []
    final = ddim(callback=states.append)
    assert [s.t for s in states] == TIMESTEPS
    assert [s.index for s in states] == list(range(5))
    assert [s.t_prev for s in states] == [*TIMESTEPS[1:], None]
    assert torch.equal(states[-1].x_prev, final)
    for before, after in zip(states, states[1:], strict=False):
        assert torch.equal(before.x_prev, after.x_t)
    assert "step 1 of 5, t=999 -> 799" in repr(states[0])


def test_trace_holds_only_what_it_is_asked_for():
    trace = d.Trace(keep=("x0",), every=2)
    final = ddim(trace=trace)
    assert trace.timesteps == TIMESTEPS
    assert trace.kept_timesteps == [999, 599, 199]
    assert trace.stack("x0").shape == (3, *SHAPE)
    assert trace.rms("x0").shape == (5, 2)
    torch.testing.assert_close(trace.rms("x_t")[0], start()[0].flatten(1).square().mean(1).sqrt())
    assert trace.nbytes == trace.bytes_needed(SHAPE, 5) == 3 * final.numel() * 4
    with pytest.raises(UnknownNameError, match="x0"):
        trace.stack("eps")

    numbers = d.Trace(keep=())
    ddim(trace=numbers)
    assert numbers.nbytes == 0
    assert numbers.rms("eps").shape == (5, 2)
    assert ddim(trace=d.Trace(norms=False)).shape == SHAPE


def test_trace_copies_and_lets_the_loops_tensors_go():
    outputs: list[weakref.ref] = []

    def predict(x_t: torch.Tensor, t: int) -> torch.Tensor:
        output = network(x_t, t)
        outputs.append(weakref.ref(output))
        return output

    trace = d.Trace(keep=("x_t", "eps", "x0", "x_prev"))
    final = ddim(predict, trace=trace)
    assert [ref() for ref in outputs] == [None] * 5
    kept = trace.stack("x_prev")[-1]
    final.zero_()
    assert float(kept.abs().min()) > 0
    assert torch.equal(trace.stack("x_prev")[-1], kept)

    small = d.Trace(dtype=torch.float16)
    ddim(trace=small)
    assert small.stack("x0").dtype == torch.float16
    assert small.nbytes == small.bytes_needed(SHAPE, 5) == trace.nbytes // 8


def test_tracing_does_not_change_the_run():
    assert torch.equal(ddim(), ddim(trace=d.Trace(keep=("x_t", "eps", "x0", "x_prev"))))


def test_trace_records_what_a_hook_reports():
    trace = d.Trace()
    ddim(trace=trace, guidance=lambda s: d.Correction(stats={"gap": s.x0.flatten(1).norm(dim=1)}))
    assert [step.stats["gap"].shape for step in trace.steps] == [(2,)] * 5


def test_trace_refuses_before_the_first_network_call():
    calls: list[str] = []
    predict = counting(calls, "net", 0.0)
    with pytest.raises(ConfigError, match="max_bytes"):
        ddim(predict, trace=d.Trace(max_bytes=100))
    used = d.Trace()
    ddim(trace=used)
    with pytest.raises(ConfigError, match="Make a new Trace"):
        ddim(predict, trace=used)
    assert calls == []
    with pytest.raises(ConfigError, match="empty"):
        d.Trace().stack()
    with pytest.raises(ConfigError, match="every is 0"):
        d.Trace(every=0)
    with pytest.raises(UnknownNameError, match="Did you mean 'x_prev'"):
        d.Trace(keep="x_prv")


def test_inputs_are_not_written_into():
    x_T, _ = start()
    before = x_T.clone()
    d.sample(network, x_T, TIMESTEPS, SCHEDULE)
    assert torch.equal(x_T, before)


def test_dtype_of_the_start_is_kept():
    assert d.sample(network, start()[0].double(), TIMESTEPS, SCHEDULE).dtype == torch.float64
    assert ddim(lambda x_t, t: network(x_t, t).bfloat16()).dtype == torch.float32
