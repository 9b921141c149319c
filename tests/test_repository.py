"""The repository: one list of dependencies, a lock that fits it, and nothing that belongs to one machine only."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import lock as lock_tool  # noqa: E402
import times as times_tool  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NAMED = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
LOCK_LINES = [
    line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
]
LOCK = dict(line.split("==") for line in LOCK_LINES)


def tracked_files() -> list[Path]:
    """Return the files git tracks, or every file of a copy without git that is no build product."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files are tracked is unknown")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def test_the_lock_holds_exact_versions_that_fit_every_machine() -> None:
    assert list(LOCK) == sorted(LOCK)
    for line in LOCK_LINES:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line
        assert not lock_tool.only_some_machines(line.split("==")[0]), line


@pytest.mark.parametrize("line", NAMED)
def test_every_named_dependency_is_in_the_lock(line: str) -> None:
    requirement = Requirement(line)
    assert requirement.specifier.contains(Version(LOCK[lock_tool.canonical(requirement.name)]))


def test_the_lock_is_complete() -> None:
    waiting, seen = [Requirement(line) for line in NAMED], set()
    while waiting:
        requirement = waiting.pop()
        name = lock_tool.canonical(requirement.name)
        if lock_tool.only_some_machines(name) or (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        assert name in LOCK, f"{requirement.name} is needed but not in requirements.lock: make lock"
        try:
            further = requires(name) or []
        except PackageNotFoundError:
            pytest.fail(f"{name} is in the lock but not installed here: make test sets it up")
        for each in map(Requirement, further):
            extras = [*requirement.extras, ""]
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(each)


def test_locked_lines_leave_out_what_only_some_machines_need() -> None:
    installed = {"torch": "2.0+cpu", "Nvidia_Cublas": "1", "triton": "3", "refbfr_core": "0", "pip": "1", "a.B": "2"}
    assert lock_tool.locked_lines(installed) == ["a-b==2", "torch==2.0"]


def test_torch_and_torchvision_are_built_for_each_other() -> None:
    # Since their first common release both count up together: torch 2.n goes with torchvision 0.(n + 15).
    torch, vision = Version(LOCK["torch"]), Version(LOCK["torchvision"])
    assert torch.major == 2 and vision.minor == torch.minor + 15


def test_conda_users_get_the_same_environment() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pip = environment["dependencies"][-1]["pip"]
    assert pip == ["--requirement requirements.lock", "--editable ."]


def test_the_shipped_weights_travel_with_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert "weights/toy/**/*" in patterns["package-data"]["refbfr_core"]


def readable_text(path: Path) -> str:
    """Return the text of a file, pictures inside notebooks left out; nothing for a binary file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""
    if path.suffix == ".ipynb":
        return re.sub(r'"image/[a-z+]+": ("[^"]*"|\[[^]]*\])|data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+', "", text)
    return text


# Put together here so that this file does not find itself.
HOSTS = re.compile("|".join(["pypi" + r"\.org", "python" + "hosted", "ana" + r"conda\.org", "download.py" + "torch"]))
PLACES = re.compile(r"(?<![\w.~])/" + "(?:root|home/[a-z]+|Users/[a-z]+|work|opt|mnt|data)/")


def test_no_package_host_and_no_place_of_one_machine() -> None:
    found = []
    for path in tracked_files():
        for number, line in enumerate(readable_text(path).splitlines(), 1):
            if HOSTS.search(line) or PLACES.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_files_stay_short_enough_to_read() -> None:
    long = {}
    for path in tracked_files():
        # The source of a notebook is mostly prose.
        if path.suffix == ".py" and not path.is_relative_to(ROOT / "notebooks" / "src"):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            # A list of cases is easier to read than a program, so tests may be a little longer.
            if lines > (430 if path.is_relative_to(ROOT / "tests") else 360):
                long[str(path.relative_to(ROOT))] = lines
    assert not long


def test_fixtures_and_weights_stay_small() -> None:
    files = tracked_files()
    fixtures = sum(path.stat().st_size for path in files if path.is_relative_to(ROOT / "tests" / "fixtures"))
    assert fixtures < 3_000_000
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert all(path.stat().st_size <= 6 * 2**20 for path in weights)


def test_links_and_pictures_of_the_readme_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), f"README.md names {target}, which is not there"


def test_the_example_in_the_readme_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, torch.Tensor] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["photos"].shape == (2, 4, 3, 128, 128)
    assert names["restored"].shape == names["lq"].shape == (2, 3, 128, 128)
    assert len(names["record"]) == 2


def test_the_table_of_notebooks_is_the_one_that_was_measured() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    measured = json.loads(times_tool.MEASURED.read_text(encoding="utf-8"))["notebooks"]
    assert times_tool.with_table(readme, times_tool.table(ROOT / "notebooks", measured)) == readme, (
        "write it anew with: make times"
    )


def test_the_ci_script_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
