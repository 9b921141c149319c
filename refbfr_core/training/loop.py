"""One small training loop under accelerate, shared by every network: CPU, one GPU or many, without a word of
difference.

The loop knows nothing about faces. A *task* gives it the module to optimise, the batch of a step as a function of
(seed, step), the loss, and an evaluation; see :class:`Task`.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast
from torch import Tensor, nn
from tqdm.auto import tqdm

from refbfr_core.errors import ConfigError, RefbfrError
from refbfr_core.files import output_error
from refbfr_core.training.averaging import AveragedWeights, learning_rate
from refbfr_core.training.randomness import numbers
from refbfr_core.training.recipes import Recipe, as_dict
from refbfr_core.training.records import (
    CHECKPOINT,
    RunLog,
    check_same_recipe,
    hardware,
    load_checkpoint,
    save_checkpoint,
)

Batch = dict[str, Tensor]
Metrics = dict[str, Tensor]


class TrainingDivergedError(RefbfrError, ArithmeticError):
    """The loss is no longer a finite number."""


class Task(Protocol):
    """What the loop needs to know about a training.

    ``module`` is optimised; ``network``, a part of it or the same, is averaged, evaluated and saved. ``facts`` are
    plain
    values that a continued run must find again (how many people there were, digests of other networks it uses),
    ``memory``
    tensors outside the module that it must get back.
    """

    recipe: Recipe
    module: nn.Module
    network: nn.Module
    facts: dict[str, Any]
    memory: dict[str, Tensor]

    def batch(self, step: int, rank: int, world: int) -> Batch | list[Batch]:
        """This process's share of the batch of a step, on the CPU: a function of the recipe's seed and the
        arguments. A list is gone through one by one, to save memory; the sum of its losses is the loss of the step, and
        every process must give as many.
        """

    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, Metrics]:
        """Scalar loss, and metrics: scalars, or pairs (sum, count) that are added up until the next log line."""

    def before_step(self, step: int, state: TrainingState) -> None:
        """Whatever has to change between steps (codebooks, phases); runs on every process."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Numbers on fixed unseen data, for the averaged network."""

    def finish(self, network: nn.Module) -> None:
        """Last touches to the averaged network before it is saved."""

    def about(self) -> dict[str, Any]:
        """Words for the model card: "summary" and "limits"."""


class TrainingState:
    """The objects a task may touch between steps."""

    def __init__(self, accelerator: Accelerator, module: nn.Module, optimizer: Any, average: AveragedWeights) -> None:
        self.accelerator, self.module, self.optimizer, self.average = accelerator, module, optimizer, average


def any_accelerator(precision: str, device: str | None = None) -> Accelerator:
    """Accelerator for any number of processes; ``device="cpu"`` keeps a training off a GPU that is there.

    Accelerate fixes the precision with the first accelerator of a Python process. One process may train several
    networks one after the other, so another precision starts it afresh.
    """
    options = {"mixed_precision": precision, "cpu": device == "cpu"}
    try:
        accelerator = Accelerator(**options)
    except ValueError:
        AcceleratorState._reset_state()
        accelerator = Accelerator(**options)
    if device == "cpu" and accelerator.device.type != "cpu":
        raise ConfigError("this Python process has already trained on a GPU; start a new one to train on the CPU.")
    return accelerator


def make_accelerator(recipe: Recipe, device: str | None = None) -> Accelerator:
    """`any_accelerator` for a recipe whose batch the processes must share evenly; raises ConfigError if they cannot."""
    accelerator = any_accelerator(recipe.precision, device)
    if recipe.batch % accelerator.num_processes:
        raise ConfigError(
            f"batch={recipe.batch} cannot be shared by {accelerator.num_processes} processes; use a multiple."
        )
    return accelerator


def train(
    task: Task,
    out: str | Path,
    accelerator: Accelerator,
    *,
    resume: bool = False,
    minutes: float | None = None,
) -> dict[str, Any]:
    """Train until ``recipe.steps`` or until ``minutes`` of this call are over; returns a summary for the card.

    ``out`` receives ``checkpoint.pt`` and ``log.jsonl``. With ``resume`` the run goes on from the checkpoint and sees
    the
    batches it would have seen without the interruption.

    Raises
    ------
    ConfigError : ``out`` already holds a run and ``resume`` is off, there is nothing to resume, or the checkpoint
    belongs
        to another recipe. TrainingDivergedError : the loss is not finite. OutputError, DiskFullError : ``out`` cannot
        be
        written to.
    """
    recipe, out = task.recipe, Path(out)
    if not resume and (out / CHECKPOINT).is_file():
        raise ConfigError(f"{out} already holds a training; pass resume to continue it, or choose another folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(out, error) from error
    # Data-parallel copies start equal because every task seeds its own initial weights.
    module = task.module.to(accelerator.device)
    if recipe.channels_last:
        module = module.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(module, recipe, accelerator.device)
    average = AveragedWeights(task.network, recipe.ema)
    step, seconds = 0, 0.0
    if resume:
        step, seconds = _restore(load_checkpoint(out), task, optimizer, average)
    wrapped, optimizer = accelerator.prepare(module, optimizer)
    state = TrainingState(accelerator, module, optimizer, average)
    log = RunLog(out, accelerator.is_main_process)
    machine = hardware(accelerator.num_processes, accelerator.device)
    log.write("start", step=step, recipe=as_dict(recipe), facts=task.facts, hardware=machine)

    began, first = time.perf_counter(), step
    totals: dict[str, Tensor] = {}
    since, logged = time.perf_counter(), step
    hidden = True if os.environ.get("CI") or not accelerator.is_main_process else None  # None: only on a terminal
    bar = tqdm(total=recipe.steps, initial=step, desc=recipe.network, disable=hidden)

    def elapsed() -> float:
        return time.perf_counter() - began

    def save() -> None:
        if accelerator.is_main_process:
            save_checkpoint(out, _snapshot(task, optimizer, average, step, seconds + elapsed()))
        accelerator.wait_for_everyone()

    stop = step >= recipe.steps
    while not stop:
        # Dropout and whatever else draws from torch's own stream depend on the step too, so nothing has to be stored.
        torch.manual_seed(int(numbers(recipe.seed, 3, step, accelerator.process_index).integers(2**62)))
        task.before_step(step, state)
        metrics = optimiser_step(task, wrapped, optimizer, accelerator, step)
        average.update(task.network)
        step += 1
        bar.update()
        _add(totals, metrics)
        if step % recipe.log_every == 0 or step == recipe.steps:
            totals = {key: accelerator.reduce(totals[key].to(accelerator.device), "sum") for key in sorted(totals)}
            means = {key: float(pair[0] / pair[1]) for key, pair in totals.items() if float(pair[1])}
            rate = recipe.batch * (step - logged) / (time.perf_counter() - since)
            log.write(
                "step", step=step, **_rounded(means), lr=learning_rate(recipe, step - 1),
                samples_per_second=round(rate, 2),
                seconds=round(seconds + elapsed(), 1),
            )  # fmt: skip
            bar.set_postfix(loss=f"{means.get('loss', float('nan')):.4f}", rate=f"{rate:.0f}/s")
            totals, since, logged = {}, time.perf_counter(), step
            stop = _everyone(accelerator, minutes is not None and elapsed() > 60 * minutes)
        stop = stop or step >= recipe.steps
        if step % recipe.eval_every == 0 and not stop:
            pause = time.perf_counter()
            if accelerator.is_main_process:
                log.write("eval", step=step, **_rounded(_evaluate(task, average)))
            accelerator.wait_for_everyone()
            since += time.perf_counter() - pause
        if step % recipe.checkpoint_every == 0 or stop:
            save()
    bar.close()
    results = _rounded(_evaluate(task, average)) if accelerator.is_main_process else {}
    log.write("end", step=step, results=results, seconds=round(seconds + elapsed(), 1), new_steps=step - first)
    accelerator.wait_for_everyone()
    return {"steps": step, "samples": step * recipe.batch, "seconds": round(seconds + elapsed()), "hardware": machine,
            "results": results, "average": average}  # fmt: skip


def optimiser_step(task: Task, wrapped: nn.Module, optimizer: Any, accelerator: Accelerator, step: int) -> Metrics:
    """Batch, loss, backward pass and update of one step; raises `TrainingDivergedError`, the weights then unchanged."""
    recipe = task.recipe
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step) * group.get("rate", 1.0)
    batch = task.batch(step, accelerator.process_index, accelerator.num_processes)
    pieces = batch if isinstance(batch, list) else [batch]
    wrapped.train()
    loss, totals = torch.zeros((), device=accelerator.device), {}
    for index, piece in enumerate(pieces):
        piece = {key: value.to(accelerator.device, non_blocking=True) for key, value in piece.items()}
        # Processes exchange gradients once a step, in the backward pass of the last piece.
        with accelerator.no_sync(wrapped) if index + 1 < len(pieces) else contextlib.nullcontext():
            with accelerator.autocast():
                part, metrics = task.loss(wrapped, piece, step)
            accelerator.backward(part)
        loss = loss + part.detach()
        _add(totals, metrics)
    norm = accelerator.clip_grad_norm_(wrapped.parameters(), recipe.clip)
    if not bool(torch.isfinite(norm)):
        raise TrainingDivergedError(
            f"the gradient at step {step} is {float(norm)} (loss {float(loss.detach()):.4g}); lower lr={recipe.lr}, "
            "or use precision='no'. "
            "The last checkpoint is untouched."
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": loss, **totals, "gradient": norm}


def _add(totals: Metrics, metrics: Metrics) -> None:
    """Add metrics up as pairs (sum, count); a scalar counts once."""
    for key, value in metrics.items():
        value = value.detach().float()
        pair = value if value.ndim else torch.stack([value, torch.ones_like(value)])
        totals[key] = totals[key] + pair if key in totals else pair


def make_optimizer(module: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """AdamW; weight decay acts on matrices and filters only, never on biases, norms and slopes, unless the recipe says
    so (`decay_everything`). A recipe's `rates` give parameters whose name begins so a share of the learning rate."""
    rest = recipe.weight_decay if getattr(recipe, "decay_everything", False) else 0.0
    rates = getattr(recipe, "rates", {})

    def rate_of(name: str) -> float:
        return next((share for start, share in rates.items() if name.startswith(start)), 1.0)

    named = [(rate_of(name), p) for name, p in module.named_parameters() if p.requires_grad]
    groups = []
    for rate in sorted({rate for rate, _ in named}, reverse=True):
        for matrix, decay in ((True, recipe.weight_decay), (False, rest)):
            chosen = [p for own, p in named if own == rate and (p.ndim >= 2) == matrix]
            groups.append({"params": chosen, "weight_decay": decay, "rate": rate})
    return torch.optim.AdamW(groups, lr=recipe.lr, fused=device.type in ("cpu", "cuda"))


def _snapshot(task: Task, optimizer: Any, average: AveragedWeights, step: int, seconds: float) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": seconds,
        "recipe": as_dict(task.recipe),
        "facts": task.facts,
        "memory": task.memory,
        "module": task.module.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def _restore(state: dict[str, Any], task: Task, optimizer: Any, average: AveragedWeights) -> tuple[int, float]:
    check_same_recipe(state["recipe"], as_dict(task.recipe))
    if state["facts"] != task.facts:
        raise ConfigError(
            f"the checkpoint was made with {state['facts']}, now there is {task.facts}; use the same data."
        )
    task.module.load_state_dict(state["module"])
    for key, value in state["memory"].items():
        task.memory[key].copy_(value)
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["seconds"])


def _evaluate(task: Task, average: AveragedWeights) -> dict[str, float]:
    with torch.no_grad():
        return task.evaluate(average.network.eval())


def _everyone(accelerator: Accelerator, stop: bool) -> bool:
    """The first process decides for all: clocks differ, and a process that stops alone would leave the others
    waiting."""
    if accelerator.num_processes == 1:
        return stop
    return bool(broadcast(torch.tensor([float(stop)], device=accelerator.device), from_process=0).item())


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.5g}") for key, value in values.items()}
