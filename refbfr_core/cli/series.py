"""Running the notebooks in order, so that a killed series resumes and nothing half-written is taken for a result.

Every notebook runs in a kernel of its own and is written under a temporary name first. What is finished stands in
`times.json` with the digest of all that went in; a notebook whose digest and result are unchanged is not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refbfr_core.errors import ConfigError, RefbfrError, missing_extra, unknown_name
from refbfr_core.files import output_error, write_text
from refbfr_core.notebook.export import FIGURES_VARIABLE

TIMES_FILE = "times.json"
_PARTIAL = ".{name}.partial.ipynb"
_KERNEL_START_SECONDS = 180  # a kernel that imports from a cold, busy disk takes its time


class NotebookError(RefbfrError, RuntimeError):
    """A notebook stopped with an error, or its kernel died."""


@dataclass(frozen=True)
class Notebook:
    """One notebook of the series: its file, its name without suffix, and its first heading."""

    path: Path
    name: str
    title: str


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook: the seconds it took (when it was last run) and whether it had been done before."""

    name: str
    seconds: float
    skipped: bool


def find_notebooks(folder: Path) -> list[Notebook]:
    """Return the notebooks in `folder` in reading order, that is by name. Raises ConfigError when there are none."""
    paths = sorted(path for path in folder.glob("*.ipynb") if not path.name.startswith("."))
    if not paths:
        raise ConfigError(
            f"no notebooks in {folder}; run this in a clone of the workbook, or name the folder with --notebooks PATH."
        )
    return [Notebook(path, path.stem, _title(_read(path))) for path in paths]


def select(series: Sequence[Notebook], only: Sequence[str]) -> list[Notebook]:
    """Return the notebooks that `only` names, by number ("03") or name, in reading order; all when it is empty.

    Raises UnknownNameError that names the nearest.
    """
    chosen: set[str] = set()
    for wanted in only:
        key = wanted.removesuffix(".ipynb")
        found = {one.name for one in series if one.name == key or one.name.split("_")[0] == key.zfill(2)}
        if not found:
            raise unknown_name("notebook", wanted, [one.name for one in series])
        chosen |= found
    return [one for one in series if not only or one.name in chosen]


def run_series(
    series: Sequence[Notebook],
    out: Path,
    *,
    profile: str = "toy",
    force: bool = False,
    report: Callable[[str], object] = print,
) -> list[Outcome]:
    """Execute `series` into the folder `out` and return what became of each notebook.

    Parameters
    ----------
    series : notebooks, run in this order, each with its own folder as the working folder.
    out : where the executed notebooks, their figures (`figures/`) and `times.json` go.
    profile : given to each notebook that has a `parameters` cell.
    force : run what is done already, too.
    report : called with a line of text for each notebook.

    Raises
    ------
    NotebookError : a notebook failed; it leaves no file, what was finished before stays and is skipped the next time.
    MissingExtraError : papermill is not installed. OutputError, DiskFullError : `out` cannot be written to.
    """
    _prepare(out)
    times = _read_times(out / TIMES_FILE)
    package = package_digest()
    outcomes = []
    for notebook in series:
        result = out / f"{notebook.name}.ipynb"
        digest = content_digest(notebook.path, profile, package)
        done = times["notebooks"].get(notebook.name, {})
        if (
            not force
            and result.is_file()
            and (done.get("content"), done.get("result")) == (digest, _file_digest(result))
        ):
            outcomes.append(Outcome(notebook.name, done["seconds"], skipped=True))
            report(f"{notebook.name}: done before ({done['seconds']:.1f} s)")
            continue
        seconds = _execute(notebook, result, profile, out / "figures")
        times["notebooks"][notebook.name] = {
            "seconds": round(seconds, 2),
            "machine": describe_machine(),
            "profile": profile,
            "content": digest,
            "result": _file_digest(result),
        }
        write_text(out / TIMES_FILE, json.dumps(times, indent=2, sort_keys=True) + "\n")
        outcomes.append(Outcome(notebook.name, seconds, skipped=False))
        report(f"{notebook.name}: {seconds:.1f} s")
    return outcomes


def content_digest(path: Path, profile: str, package: str) -> str:
    """Return the SHA-256 over what decides a result: the notebook's cells (not their outputs), profile and package."""
    cells = [
        (cell["cell_type"], cell["source"], cell.get("metadata", {}).get("tags", [])) for cell in _read(path)["cells"]
    ]
    return hashlib.sha256(json.dumps([cells, profile, package]).encode()).hexdigest()


def package_digest() -> str:
    """Return the SHA-256 over the package's code and the cards of its weights (which hold the weights' own digests)."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("card.json")]):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def describe_machine() -> str:
    """Return the machine in a few words: processor, cores this process may use, GPU if there is one, system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    import torch

    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {cores} CPU core{'s' if cores > 1 else ''}{gpu}, {platform.system()}"


def _execute(notebook: Notebook, result: Path, profile: str, figures: Path) -> float:
    """Run one notebook, put it in place, return the seconds it took."""
    try:
        from jupyter_client.kernelspec import NoSuchKernel
        from nbclient.exceptions import CellControlSignal, DeadKernelError
        from papermill import execute_notebook
        from papermill.exceptions import PapermillExecutionError
        from traitlets.config import Config
    except ImportError as error:
        raise missing_extra("papermill", "notebooks", "running the notebooks") from error
    partial = result.with_name(_PARTIAL.format(name=notebook.name))
    parameters = {"profile": profile} if _has_parameters(_read(notebook.path)) else {}
    start = time.perf_counter()
    try:
        with _environment(FIGURES_VARIABLE, str(figures.resolve())):
            execute_notebook(
                notebook.path,
                partial.resolve(),
                parameters,
                cwd=notebook.path.parent,
                progress_bar=False,
                start_timeout=_KERNEL_START_SECONDS,
                # Without keys every kernel prints a warning that others on this machine could listen in.
                config=Config({"KernelManager": {"transport_encryption": "auto"}}),
            )
        os.replace(partial, result)
    except PapermillExecutionError as error:
        raise NotebookError(
            f"{notebook.name} failed in its code cell {error.exec_count}: {error.ename}: {error.evalue} "
            f"Open {notebook.path} in JupyterLab to see where; what is finished stays and will be skipped."
        ) from error
    except (DeadKernelError, CellControlSignal, NoSuchKernel) as error:
        raise NotebookError(
            f"{notebook.name} could not be run to its end ({type(error).__name__}: {error}). A kernel that dies mostly "
            "ran out of memory; close other programs, run again."
        ) from error
    except OSError as error:
        raise output_error(result, error) from error
    finally:
        partial.unlink(missing_ok=True)
    return time.perf_counter() - start


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for the kernels started inside, unless the user has set it, and take it back."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


def _prepare(out: Path) -> None:
    """Make the folder, clear what a killed run left, and find out now rather than in minutes if it is read-only."""
    probe = out / f".{os.getpid()}.probe"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
        for leftover in out.glob(_PARTIAL.format(name="*")):
            leftover.unlink()
    except OSError as error:
        raise output_error(out, error) from error


def _read(path: Path) -> dict[str, Any]:
    """Read a notebook as plain JSON. Raises ConfigError when it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} is not a readable notebook ({error}); restore it from the repository.") from error
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        raise ConfigError(f"{path} has no cells; restore it from the repository.")
    return content


def _title(content: dict[str, Any]) -> str:
    """Return the first heading of a notebook, or nothing."""
    for cell in content["cells"]:
        for line in "".join(cell["source"]).splitlines() if cell["cell_type"] == "markdown" else ():
            if line.startswith("#"):
                return line.lstrip("#").strip()
    return ""


def _has_parameters(content: dict[str, Any]) -> bool:
    """Tell whether a cell carries the tag papermill looks for."""
    return any("parameters" in cell.get("metadata", {}).get("tags", []) for cell in content["cells"])


def _read_times(path: Path) -> dict[str, Any]:
    """Return what was recorded, an empty record when there is none. Raises ConfigError for a damaged file."""
    if not path.is_file():
        return {"notebooks": {}}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {**content, "notebooks": dict(content.get("notebooks", {}))}
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}); delete it, and the notebooks run anew.") from error


def _file_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file, None when there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
