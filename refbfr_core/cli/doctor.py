"""`refbfr doctor`: what is there, what is missing, and how to get it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

_MARKS = {"ok": "ok     ", "missing": "missing", "broken": "BROKEN "}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Look at versions, device, weights, datasets and extras. Exit code 0 unless the toy profile cannot work."""
    from refbfr_core.cli.examination import MISSING, examine, is_broken

    findings = examine()
    broken = is_broken(findings)
    if as_json:
        typer.echo(json.dumps({"ok": not broken, "findings": [asdict(finding) for finding in findings]}, indent=2))
        raise typer.Exit(1 if broken else 0)
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            typer.echo(f"\n{section}" if finding is not findings[0] else section)
        typer.echo(f"  {_MARKS[finding.status]}  {finding.name}: {finding.detail}")
        if finding.cure:
            typer.echo(f"           -> {finding.cure}")
    missing = sum(finding.status == MISSING for finding in findings)
    verdict = "the toy profile cannot work until what is BROKEN is mended" if broken else "the toy profile is ready"
    typer.echo(f"\n{verdict}" + (f"; {missing} optional things are missing" if missing else ""))
    raise typer.Exit(1 if broken else 0)
