"""What looking a dataset over results in: findings, counts, and the report that prints them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LEVELS = ("error", "warning", "note")
EXAMPLES = 5
"""How many cases a finding shows."""


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed.

    `level`: "error" (the dataset cannot be used as it is), "warning" (it differs from the paper's) or "note". `kind`:
    "missing-piece", "missing-file", "unreadable-row", "duplicate-row", "duplicate-reference", "self-reference",
    "same-file", "damaged-picture", "count", "identities", "leak-image", "leak-list" or "leak-identity"; for people in
    folders also "too-few", "duplicate-picture", "near-duplicate" and "pairs". `count`: how many; `examples`: the first
    few. In test sets without references also "duplicate-name", "size", "training", "training-overlap" and "remark".
    """

    level: str
    kind: str
    split: str
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(self.examples)
        more = ", ..." if self.count > len(self.examples) > 0 else ""
        return f"{self.level}: {self.split}: {self.message}" + (f" ({shown}{more})" if shown else "")


@dataclass(frozen=True)
class SplitSummary:
    """What was counted in one split: targets, references and identity groups of its list; without references the
    latter two are None."""

    name: str
    rows: int
    references: int | None
    groups: int | None

    def __str__(self) -> str:
        if self.references is None:
            return f"{self.name}: {self.rows:,} pictures"
        each = self.references / max(1, self.rows)
        return f"{self.name}: {self.rows:,} targets, {each:.1f} references each, {self.groups:,} identity groups"


@dataclass(frozen=True)
class DatasetReport:
    """The result of `validate`; prints itself."""

    dataset: str
    root: Path
    splits: tuple[SplitSummary, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way of using the dataset."""
        return not any(finding.level == "error" for finding in self.findings)

    def of(self, kind: str) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def __str__(self) -> str:
        lines = [f"{self.dataset} in {self.root}"]
        lines += [f"  {split}" for split in self.splits]
        ordered = sorted(self.findings, key=lambda finding: LEVELS.index(finding.level))
        lines += [f"  {finding}" for finding in ordered]
        lines.append("  usable" if self.ok else "  NOT usable as it is")
        return "\n".join(lines)


def finding(kind: str, split: str, cases: Iterable[str], what: str, level: str = "error") -> list[Finding]:
    """One finding about all the cases, or none where there is no case; a set is sorted first."""
    ordered = sorted(cases) if isinstance(cases, set) else list(cases)
    if not ordered:
        return []
    return [Finding(level, kind, split, f"{len(ordered)} {what}", len(ordered), tuple(ordered[:EXAMPLES]))]
