"""How fast ReF-LDM's reference attention is at full size on this CPU: `python benchmarks/refldm_speed.py`.

Compares, in one run and with interleaved repeats, three ways to call the denoiser of the release (118 M parameters,
64x64 latents, random weights) with cached references:

* naive: the reference implementation's attention as public latent-diffusion code writes it. One fused projection, heads
  folded into the batch as (B*heads, 32, T), cached keys and values in that layout concatenated at every call, the
  whole score matrix, an explicit softmax. Null references are cached and attended to like any others.
* ours: `refbfr_core.models.denoise` with a cache of the same references.
* ours, null shared: the same with `ReferenceCache.null` for the unconditional branch of classifier-free guidance, as
  the pipeline calls it.

Prints Markdown tables and the largest relative difference of the results. These are measurements, not tests. The clock
of a table is the processor time of this process with one thread, and the time on the wall with more; other work on the
machine disturbs the second far more.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from refbfr_core.models import ReferenceCache, denoise
from refbfr_core.models.cachekv import attention_layers, processors
from refbfr_core.pipelines.rows import rows_per_call

TOLERANCE = 1e-5
"""Largest difference allowed, relative to the largest value of the naive result."""

GOAL = 1.4
"""How many times faster than naive a call of the whole network has to be."""

CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}


class NaiveAttention:
    """Reference attention as public latent-diffusion code computes it, on the weights of a diffusers `Attention`.

    `cached`: (keys, values) of every reference, (B*heads, d, T) each. With `record`, the layer's own keys and values
    are appended to it, as in the reference pass.
    """

    def __init__(self, layer: Attention) -> None:
        three = [getattr(layer, f"to_{letter}") for letter in "qkv"]
        # Laid out per head, [q_0, k_0, v_0, q_1, ...], as one 1x1 convolution.
        self.weight = torch.stack([_per_head(x.weight, layer.heads) for x in three], 1).flatten(0, 2)[..., None]
        self.bias = torch.stack([_per_head(x.bias, layer.heads) for x in three], 1).flatten()
        self.out = (layer.to_out[0].weight[..., None], layer.to_out[0].bias)
        self.cached: list[tuple[Tensor, Tensor]] = []
        self.recording = False

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        rows, channels = hidden_states.shape[:2]
        flat = hidden_states.flatten(2)
        width = channels // attn.heads
        query_key_value = F.conv1d(attn.group_norm(flat), self.weight, self.bias)
        query, key, value = query_key_value.reshape(rows * attn.heads, 3 * width, -1).split(width, dim=1)
        if self.recording:
            self.cached.append((key, value))
        elif self.cached:
            key = torch.cat([key, *(k for k, _ in self.cached)], dim=-1)
            value = torch.cat([value, *(v for _, v in self.cached)], dim=-1)
        scale = width**-0.25
        scores = torch.einsum("bct,bcs->bts", query * scale, key * scale)
        mixed = torch.einsum("bts,bcs->bct", scores.float().softmax(dim=-1).type(scores.dtype), value)
        return (flat + F.conv1d(mixed.reshape(rows, channels, -1), *self.out)).reshape(hidden_states.shape)


class NaiveReferences:
    """References of a batch of rows in a network: recorded one by one, then attended to at every call."""

    def __init__(self, unet: UNet2DModel, latents: Tensor) -> None:
        """`latents`: (B, R, C, h, w), references of every row."""
        self.unet, self.layers = unet, attention_layers(unet)
        self.attention = {name: NaiveAttention(layer) for name, layer in self.layers.items()}
        self._record(True)
        with processors(self.layers, self.attention):
            for reference in latents.unbind(1):
                unet(torch.cat([reference, torch.zeros_like(reference)], dim=1), 0)
        self._record(False)

    def __call__(self, sample: Tensor, timestep: int) -> Tensor:
        with processors(self.layers, self.attention):
            return self.unet(sample, timestep, return_dict=False)[0]

    def _record(self, on: bool) -> None:
        for attention in self.attention.values():
            attention.recording = on


@dataclass(frozen=True)
class Timing:
    """Seconds of one piece of work in the repeats of a run."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds."""
        return median(self.seconds)

    def faster_than(self, other: Timing) -> tuple[float, float, float]:
        """How many times faster this is: median, smallest and largest ratio of the pairs measured in turn."""
        ratios = [theirs / own for own, theirs in zip(self.seconds, other.seconds, strict=True)]
        return median(ratios), min(ratios), max(ratios)


def full_size_unet(seed: int = 0) -> UNet2DModel:
    """The denoiser of the release at random weights."""
    from refbfr_core.weights.convert import convert_ldm_unet
    from refbfr_core.weights.published_ldm import LIVE, REFLDM_LAYOUT
    from refbfr_core.weights.published_sample import sample_refldm

    state = {name: value for name, value in sample_refldm(seed=seed).items() if name.startswith(LIVE)}
    return convert_ldm_unet(state, REFLDM_LAYOUT.unet)


def toy_unet() -> UNet2DModel:
    """The shipped denoiser, to try this script in seconds."""
    from refbfr_core.weights import load_network

    return load_network("refldm-unet", device="cpu")


def interleaved(works: Mapping[str, Callable[[], Any]], repeats: int, clock: str = "cpu") -> dict[str, Timing]:
    """Times every piece of work `repeats` times in turn, after a first round that does not count."""
    now, threads = CLOCKS[clock], torch.get_num_threads() if clock == "cpu" else 1
    taken: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            start = now()
            work()
            elapsed = (now() - start) / threads
            if repeat:
                taken[name].append(elapsed)
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}


def difference(result: Tensor, naive: Tensor) -> float:
    """Largest difference, relative to the largest value of the naive result.

    Raises:
        SystemExit: it is above `TOLERANCE`; a ratio of different results would mean nothing.
    """
    relative = float((result - naive).abs().max() / naive.abs().max())
    if not relative <= TOLERANCE:
        raise SystemExit(f"the results differ by {relative:.1e} of the largest value; at most {TOLERANCE:g} is allowed")
    return relative


def attention_inputs(call: Callable[[], Any], layers: Mapping[str, Attention]) -> dict[str, Tensor]:
    """What enters every attention layer during `call`."""
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, arguments, name=name: seen.update({name: arguments[0]}))
        for name, layer in layers.items()
    ]
    call()
    for hook in hooks:
        hook.remove()
    return seen


def run(unet: UNet2DModel, references: int, repeats: int, clock: str) -> pd.DataFrame:
    """All measurements; one row for each piece of work and way to do it."""
    channels, side = unet.config.out_channels, unet.config.sample_size
    chunk = rows_per_call(side)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 2 * channels, side, side, generator=generator)
    latents = torch.randn(1, references, channels, side, side, generator=generator)
    nulled = torch.cat([torch.zeros_like(latents), latents])  # [unconditional, conditional], as in the release
    given, plain = ReferenceCache.build(unet, latents), ReferenceCache.build(unet, nulled)
    shared = (ReferenceCache.null(unet, torch.tensor([references])), given)
    naive, naive_guided = NaiveReferences(unet, latents), NaiveReferences(unet, nulled)
    both = torch.cat([sample, sample])
    one = {"naive": lambda: naive(sample, 500), "ours": lambda: denoise(unet, sample, 500, given)}
    two = {
        "naive": lambda: naive_guided(both, 500),
        "ours": lambda: denoise(unet, both, 500, plain),
        "ours, null shared": lambda: denoise(unet, both, 500, shared),
        "ours, null shared, two calls": lambda: torch.cat([denoise(unet, sample, 500, each) for each in shared]),
    }
    passes = {
        "naive": lambda: NaiveReferences(unet, nulled),
        "ours, null shared": lambda: (
            ReferenceCache.build(unet, latents, chunk_size=chunk),
            ReferenceCache.null(unet, torch.tensor([references]), chunk_size=chunk),
        ),
    }
    rows = []
    for what, works in (("whole network, 1 row", one), ("whole network, guided (2 rows)", two)):
        expected = works["naive"]()
        differences = {name: difference(work(), expected) for name, work in works.items()}
        rows += _rows(what, interleaved(works, repeats, clock), differences)
        layers = attention_layers(unet)
        inputs = attention_inputs(works["naive"], layers)
        blocks = {name: _attention_alone(work, layers, inputs) for name, work in works.items() if "calls" not in name}
        expected = blocks["naive"]()
        differences = {name: difference(work(), expected) for name, work in blocks.items()}
        alone = what.replace("whole network", "attention layers")
        rows += _rows(alone, interleaved(blocks, repeats, clock), differences)
    rows += _rows(f"reference passes, {references} references", interleaved(passes, max(1, repeats // 2), clock), {})
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """The measurements as a Markdown table."""
    heads = ("what", "how", "seconds", "times faster than naive (spread)", "largest relative difference")
    lines = [f"| {' | '.join(heads)} |", "|---|---|--:|--:|--:|"]
    for row in table.itertuples(index=False):
        faster = "" if row.how == "naive" else f"{row.faster:.2f} ({row.slowest:.2f} to {row.fastest:.2f})"
        apart = "" if row.how == "naive" or pd.isna(row.difference) else f"{row.difference:.0e}"
        lines.append(f"| {row.what} | {row.how} | {row.seconds:.3f} | {faster} | {apart} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the tables, and keeps them as a recording if asked to."""
    from refbfr_core.benchmark.recording import machine, record

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    parser.add_argument("--clock", choices=CLOCKS, help="default: cpu with one thread, wall with more")
    parser.add_argument("--size", choices=("full", "toy"), default="full", help="toy: the shipped network, in seconds")
    parser.add_argument("--record", metavar="NAME", help="keep the rows as this recording of the package")
    parser.add_argument("--folder", help="folder of the recording (default: the package's own)")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    chosen.clock = chosen.clock or ("cpu" if torch.get_num_threads() == 1 else "wall")
    described = machine() | {"threads": torch.get_num_threads(), "load_average": round(os.getloadavg()[0], 2)}
    print("; ".join(f"{key}: {value}" for key, value in described.items() if value))
    with torch.inference_mode():
        unet = full_size_unet() if chosen.size == "full" else toy_unet()
        parameters = sum(p.numel() for p in unet.parameters())
        print(f"{parameters:,} parameters, {chosen.references} references, float32, clock: {chosen.clock}\n")
        table = run(unet, chosen.references, chosen.repeats, chosen.clock)
    print(f"\n{markdown(table)}")
    reached = table[(table.what.str.startswith("whole")) & (table.how != "naive")]
    print(f"\nGoal: {GOAL} times faster than naive. Reached:")
    for row in reached.itertuples():
        print(f"  {row.what}, {row.how}: {row.faster:.2f}")
    if chosen.record:
        settings = {key: value for key, value in vars(chosen).items() if key not in ("record", "folder")}
        about = {"command": " ".join(["python benchmarks/refldm_speed.py", *sys.argv[1:]]), "settings": settings}
        record(chosen.record, table, about | {"measured_on": described, "parameters": parameters}, chosen.folder)


def _per_head(parameter: Tensor, heads: int) -> Tensor:
    """(C, ...) to (heads, C / heads, ...)."""
    return parameter.detach().unflatten(0, (heads, -1))


def _attention_alone(
    call: Callable[[], Any], layers: Mapping[str, Attention], inputs: Mapping[str, Tensor]
) -> Callable[[], Tensor]:
    """All attention blocks of `call`, with their norms and projections, on `inputs`; returns the results, flattened."""
    chosen: dict[str, object] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda module, _, name=name: chosen.update({name: module.processor}))
        for name, layer in layers.items()
    ]
    call()
    for hook in hooks:
        hook.remove()

    def blocks() -> Tensor:
        with processors(layers, chosen):
            return torch.cat([layer(inputs[name]).flatten() for name, layer in layers.items()])

    return blocks


def _rows(what: str, timings: Mapping[str, Timing], differences: Mapping[str, float]) -> list[dict[str, Any]]:
    rows = []
    print(f"  {what}: " + ", ".join(f"{how} {timing.median:.3g} s" for how, timing in timings.items()), flush=True)
    for how, timing in timings.items():
        faster, slowest, fastest = timing.faster_than(timings["naive"])
        seconds = {"seconds": timing.median, "seconds_min": min(timing.seconds), "seconds_max": max(timing.seconds)}
        ratio = {"faster": faster, "slowest": slowest, "fastest": fastest}
        rows.append({"what": what, "how": how, **seconds, **ratio, "difference": differences.get(how, float("nan"))})
    return rows


if __name__ == "__main__":
    main()
