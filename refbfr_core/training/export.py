"""The result of a training as a checked folder with a card: what it is, how it was made, what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from refbfr_core.training.recipes import Recipe, as_dict
from refbfr_core.weights import save_network

LICENCE = "Apache-2.0, like the code; trained on procedurally drawn faces only, so no photograph of anybody is in it."


def export_network(
    network: nn.Module,
    recipe: Recipe,
    name: str,
    summary: dict[str, Any],
    facts: dict[str, Any],
    about: dict[str, Any],
    out: Path,
) -> Path:
    """Write ``network`` (float16) with its card to ``out/<recipe.network>`` and return that folder.

    Parameters
    ----------
    name : of the recipe. summary : what `train` returned. facts : the data and other networks it was trained with.
    about : the task's words for the card ("summary", "limits").
    """
    card = {
        "summary": about["summary"],
        "training_data": {
            "pictures": f"drawn faces, split {recipe.split!r}, {recipe.views} views of each person, "
            f"{recipe.resolution} px",
            "seed": recipe.face_seed,
            **facts,
        },
        "recipe": {
            "name": name,
            "command": f"refbfr train {name}",
            "steps": summary["steps"],
            "samples": summary["samples"],
            "minutes": round(summary["seconds"] / 60, 1),
            **as_dict(recipe),
            "steps_planned": recipe.steps,
        },
        "hardware": summary["hardware"],
        "results": {"data": f"{recipe.val_people} unseen people of the split 'val'", **summary["results"]},
        "limits": about["limits"],
        "licence": LICENCE,
    }
    # The number of steps that were really done, not the plan, belongs under "steps".
    card["recipe"]["steps"] = summary["steps"]
    return save_network(network, recipe.network, out, card)
