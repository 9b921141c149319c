"""Model cards: `card.json` is the record, `CARD.md` the same record for people, rendered and never edited by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from refbfr_core.errors import ConfigError

FORMAT = 1
REQUIRED = ("summary", "training_data", "recipe")
_TITLES = {
    "summary": "What it is",
    "training_data": "What it was trained on",
    "recipe": "How it was trained",
    "results": "What was measured",
    "limits": "Limits",
    "licence": "Licence",
}


def check_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a plain copy of what a trainer says about a network.

    The required fields are `summary` (text), `training_data` (text or mapping) and `recipe` (mapping); `results`,
    `limits`, `licence` and any other field may follow. Values must be what JSON can hold, with finite numbers.

    Raises `ConfigError` for a missing field or a value that JSON cannot hold.
    """
    missing = [key for key in REQUIRED if not card.get(key)]
    if missing:
        raise ConfigError(
            f"the card lacks {', '.join(missing)}; it has {', '.join(sorted(card)) or 'nothing'}. "
            f"Give at least {', '.join(REQUIRED)}."
        )
    try:
        return json.loads(json.dumps(dict(card), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the card holds a value that JSON cannot write ({error}). Use text, finite numbers, lists and mappings."
        ) from error


def render_card(record: Mapping[str, Any]) -> str:
    """Markdown text of a whole `card.json` record (as `save_network` writes it)."""
    about = record["card"]
    lines = [f"# {record['name']}", ""]
    for key in [*(k for k in _TITLES if k in about), *(k for k in about if k not in _TITLES)]:
        lines += [f"## {_TITLES.get(key, key.replace('_', ' ').capitalize())}", "", *_body(about[key]), ""]
    lines += [
        "## Files",
        "",
        f"`{record['network_class']}` with {record['parameters']:,} parameters, "
        f"stored as {record['dtype']} and read as float32.",
        "",
        "| file | bytes | SHA-256 |",
        "|---|---:|---|",
        *(f"| `{item['name']}` | {item['bytes']:,} | `{item['sha256']}` |" for item in record["files"]),
        "",
        "This page is rendered from `card.json`; edit neither by hand.",
        "",
    ]
    return "\n".join(lines)


def _body(value: Any) -> list[str]:
    """Text as a paragraph, a mapping as a two-column table, a list as bullets."""
    if isinstance(value, Mapping):
        return ["| | |", "|---|---|", *(f"| {key.replace('_', ' ')} | {_cell(item)} |" for key, item in value.items())]
    if isinstance(value, list):
        return [f"- {_cell(item)}" for item in value]
    return [_cell(value)]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return "; ".join(f"{key.replace('_', ' ')}: {_cell(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    return str(value).replace("|", "\\|")
