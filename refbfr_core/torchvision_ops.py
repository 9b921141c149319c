"""Let torchvision be imported when its compiled operators do not fit the installed torch.

The Linux wheels of torchvision are built for CUDA. Beside a CPU-only torch their compiled part cannot be loaded;
torchvision notes that and goes on, but two of its modules then describe operators that do not exist and the import ends
in "operator torchvision::nms does not exist". Every library that imports torchvision falls with it: lpips,
torchmetrics, and diffusers' pipelines when transformers is installed. Those only use torchvision's plain-Python
networks and transforms. So the two modules are left out in exactly this case; calling an operator such as
`torchvision.ops.nms` still ends in torchvision's own explanation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_REGISTRATIONS = frozenset({"torchvision._autograd_registrations", "torchvision._meta_registrations"})


class _LeaveOutRegistrations(MetaPathFinder, Loader):
    """Answers for torchvision's registration modules, with empty ones, when their operators were not loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _REGISTRATIONS:
            return None
        extension = sys.modules.get("torchvision.extension")
        # torchvision imports its extension before these modules, so by now it knows whether the operators are there.
        if extension is None or extension._has_ops():
            return None
        return ModuleSpec(name, self)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module empty."""


def install() -> None:
    """Watch for torchvision's import in this process; calling it again changes nothing."""
    if not any(isinstance(finder, _LeaveOutRegistrations) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LeaveOutRegistrations())


def has_operators() -> bool:
    """Tell whether torchvision's compiled operators work here.

    Raises `ImportError` when torchvision is not installed.
    """
    from torchvision import extension

    return bool(extension._has_ops())


def install_at_start_up() -> bool:
    """Have every Python of this environment call `install` when it starts, if torchvision has no operators here.

    Without this, a program that imports diffusers before this package would still fail. Setting up the environment
    calls it once. Returns whether it was needed and done.
    """
    import importlib.util
    import sysconfig
    from pathlib import Path

    from refbfr_core.files import write_text

    if importlib.util.find_spec("torchvision") is None or has_operators():
        return False
    site_packages = Path(sysconfig.get_path("purelib"))
    # Python runs the lines of .pth files that begin with "import"; they must not fail when the package is removed
    # again.
    line = "import importlib.util; importlib.util.find_spec('refbfr_core') and __import__('refbfr_core')\n"
    write_text(site_packages / "refbfr_core_start_up.pth", line)
    return True
