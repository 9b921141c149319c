"""LD-BFR's shipped networks on drawn people they never saw: they fit each other, and both stages bring identity back.

The numbers are deterministic; the full measurement is the study's.
"""

from __future__ import annotations

import pytest
import torch

from refbfr_core import load_pipeline
from refbfr_core.benchmark.cases import make_cases
from refbfr_core.images import from_network, to_network
from refbfr_core.metrics import compute
from refbfr_core.pipelines import coarse_picture, named_coarse
from refbfr_core.weights import load_network

PEOPLE = 8


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline("ldbfr", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def cases(pipe):
    people = range(PEOPLE)
    return make_cases(
        people, PEOPLE, preset="toy-ldbfr-severe", references=1, seed=11, resolution=pipe.resolution
    )


@pytest.fixture(scope="module")
def restored(pipe, cases):
    """The cases at the pipeline's defaults."""
    return pipe(cases.lq, seed=cases.seeds)


def test_both_stages_beat_the_severely_ruined_input_in_identity(cases, restored):
    judge = load_network("judge", device="cpu")
    arms = {"input": cases.lq, "stage 1": restored.stage_one, "whole": restored.images}
    ids = {name: float(compute("ids", pictures, cases.truth, embedder=judge).mean()) for name, pictures in arms.items()}
    assert ids["stage 1"] > ids["input"] and ids["whole"] > ids["input"], ids


def test_alone_as_in_the_batch_and_every_seed_another_picture_of_the_same_condition(pipe, cases, restored):
    assert restored.settings.num_inference_steps == 50 and restored.settings.eta == 1.0
    one = cases.select(2)
    alone = pipe(one.lq, seed=one.seeds)
    assert torch.equal(alone.images, restored.images[2:3])
    other = pipe(one.lq, seed=12345)
    assert torch.equal(other.features.restored, alone.features.restored)
    assert (other.images - alone.images).abs().mean() > 1 / 255


def test_stage_one_restores_for_other_methods(cases, restored):
    chosen = named_coarse("dcvqr", device="cpu")
    made = from_network(coarse_picture(chosen, to_network(cases.lq[:2])))
    torch.testing.assert_close(made, restored.stage_one[:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["a", "b", "c", "d"])
def test_every_variant_fits_and_does_something(pipe, cases, variant):
    own = pipe.with_parts(injection=load_network(f"ldbfr-hqi-{variant}", device="cpu"))
    assert own.injection.variant == variant.upper()
    one, two = (own(cases.lq[row : row + 1], seed=1, num_inference_steps=10).images for row in (0, 1))
    assert (one - two).abs().mean() > 5 / 255, "the condition decides, the noise is the same"


def test_the_restorer_without_dual_attention_fits(pipe, cases):
    plain = pipe.with_parts(restorer=load_network("ldbfr-restorer-plain", device="cpu"))
    made = plain.features(cases.lq[:1])
    assert torch.equal(made.restored, made.looked_up)
    assert not torch.allclose(plain.stage_one(made), pipe.stage_one(pipe.features(cases.lq[:1])), atol=1e-2)
