"""Print the versions installed beside this interpreter in the form of requirements.lock; `make lock` calls it.

What belongs to one kind of machine only is left out, so that the lock fits all: the mark of a CPU or CUDA build behind
a version, and the CUDA libraries, which pip adds by itself where the build of torch asks for them.
"""

from __future__ import annotations

import re
from importlib.metadata import distributions

HEADER = """\
# Exact versions of everything the workbook runs on, for Python 3.11 and newer; made by `make lock`.
# Left out, because only some machines need them: CUDA libraries, terminal helpers of Windows and macOS."""
_ONLY_SOME_MACHINES = re.compile(r"nvidia-|cuda-|triton$|pywin|colorama$|appnope$")
_NOT_LOCKED = {"pip", "refbfr-core", "wheel"}


def canonical(name: str) -> str:
    """Return the normalised form of a package name (PEP 503): lower case, runs of `-_.` as one dash."""
    return re.sub(r"[-_.]+", "-", name).lower()


def only_some_machines(name: str) -> bool:
    """Tell whether a package, by its canonical name, is needed on one kind of machine only."""
    return bool(_ONLY_SOME_MACHINES.match(name))


def locked_lines(installed: dict[str, str]) -> list[str]:
    """Return the lines `name==version` for the `installed` packages (name to version), without local version marks."""
    versions = {canonical(name): version.split("+")[0] for name, version in installed.items()}
    return [
        f"{name}=={version}"
        for name, version in sorted(versions.items())
        if name not in _NOT_LOCKED and not only_some_machines(name)
    ]


if __name__ == "__main__":
    print(HEADER)
    print(*locked_lines({found.metadata["Name"]: found.version for found in distributions()}), sep="\n")
