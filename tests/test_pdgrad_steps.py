"""The study of fewer steps: what each arm takes, its table, and what it refuses."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_pdgrad import SIDE, pdgrad

from refbfr_core.benchmark import arms
from refbfr_core.benchmark import pdgrad_steps as study
from refbfr_core.benchmark.arms import INPUT
from refbfr_core.benchmark.cases import Cases
from refbfr_core.errors import ConfigError


def test_every_arm_takes_its_number_of_steps(monkeypatch):
    def make(people, total, *, preset, references, seed, split, resolution):
        draws = torch.Generator().manual_seed(seed)
        x = torch.rand(len(people), 3, 3, resolution, resolution, generator=draws)
        seeds = [100 + person for person in people]
        return Cases(tuple(people), x[:, 0], x[:, 1], x[:, 2:], x[:, 2:], seeds, [None] * len(people))

    monkeypatch.setattr(arms, "make_cases", make)
    pipe, asked = pdgrad(), []
    inner = type(pipe).__call__

    def watched(self, lq, references, **options):
        asked.append(options["num_inference_steps"])
        return inner(self, lq, references, **options)

    monkeypatch.setattr(type(pipe), "__call__", watched)
    judge = torch.nn.Linear(2, 2)
    made = study.run_steps_study(2, (4, 8), pipeline=pipe, judge=judge, metrics=["psnr"], progress=False)
    assert asked == [4, 8] and made.arms == [INPUT, "4", "8"] and not len(made.failures)
    assert pipe.resolution == SIDE and "start 500" in made.settings.method
    scores = made.rows.pivot(index="person", columns="arm", values="psnr")
    assert (scores["4"] != scores["8"]).all()


def test_the_table_compares_with_the_largest_number():
    draws = np.random.default_rng(0)
    lines = []
    for person in range(12):
        level = draws.normal(0, 0.2)
        for arm, gain in (("input", -0.5), ("25", 0.1), ("250", 0.3), ("100", 0.2)):
            lines.append({"person": person, "arm": arm, "status": "ok", "ids": level + gain, "psnr": 20 + level + gain,
                          "seconds": 2.0})  # fmt: skip
    table = study.steps_table(pd.DataFrame(lines))
    assert list(table.steps) == [25, 100, 250] and list(table.people) == [12] * 3
    assert table["IDS - most"][0].mean == pytest.approx(-0.2) and table["PSNR - most"][1].mean == pytest.approx(-0.1)
    assert table["IDS - most"][2] is None and table.seconds[0] == 2.0


def test_one_number_of_steps_is_no_comparison():
    with pytest.raises(ConfigError, match="at least two"):
        study.run_steps_study(2, (50, 50))
