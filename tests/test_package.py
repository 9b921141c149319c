"""The package as a whole: what importing it costs and needs, and that every public name is documented."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import refbfr_core

PACKAGE = Path(refbfr_core.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
OPTIONAL = {
    "facexlib", "insightface", "ipywidgets", "jupytext", "lpips", "nbclient", "nbmake", "onnx", "onnxruntime",
    "papermill", "pyiqa", "scipy", "skimage", "spandrel", "spandrel_extra_arches", "timm", "torchmetrics",
    "torchvision",
}  # fmt: skip
HEAVY = OPTIONAL | {"accelerate", "cv2", "diffusers", "matplotlib", "pandas", "PIL", "torch", "transformers", "typer"}


def run_python(script: str) -> str:
    """Run `script` in a fresh Python and return what it printed."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = json.loads(run_python("import json, sys, refbfr_core; print(json.dumps(sorted(sys.modules)))"))
    assert "refbfr_core" in loaded
    assert not HEAVY & set(loaded)


def test_importing_the_package_is_quick_beside_torch() -> None:
    script = """
        import time, torch
        start = time.process_time()
        import refbfr_core
        print(time.process_time() - start)
    """
    # Processor time, because another program may take the processor away while this one imports.
    assert float(run_python(script)) < 0.5


def test_every_module_imports_without_the_optional_libraries() -> None:
    script = f"""
        import importlib, pkgutil, sys
        for name in {sorted(OPTIONAL)!r}:
            sys.modules[name] = None
        # Libraries ask for optional ones of their own accord; only this package's imports are on trial.
        import refbfr_core
        for found in pkgutil.walk_packages(refbfr_core.__path__, "refbfr_core."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
        print("fine")
    """
    assert run_python(script).strip().endswith("fine")


def test_lazy_names() -> None:
    assert refbfr_core.images.__name__ == "refbfr_core.images"
    assert "load_pipeline" in dir(refbfr_core)
    with pytest.raises(AttributeError, match="'imagse'.*images"):
        refbfr_core.imagse  # noqa: B018
    rooms = {path.stem if path.suffix else path.name for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert set(refbfr_core.__all__) == rooms | {"__version__", "load_pipeline"}


def public_definitions(tree: ast.Module) -> list[ast.AST]:
    """Return the public functions, classes and methods of a module, nested functions left out."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            if isinstance(node, kinds) and not node.name.startswith("_"):
                found.append(node)
                if isinstance(node, ast.ClassDef):
                    waiting.append(node)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body, "the module has no docstring"
    silent = [f"{node.name} (line {node.lineno})" for node in public_definitions(tree) if not ast.get_docstring(node)]
    assert not silent


def forbidden_constructs(tree: ast.Module) -> list[str]:
    """Return what silently loads half a network, runs code from a file, or swallows an error."""
    found = []
    for node in ast.walk(tree):
        line = f"line {getattr(node, 'lineno', 0)}: "
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(line + "bare except")
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        keywords = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
        if keywords.get("strict") is False and name != "zip":
            found.append(line + f"{name}(strict=False)")
        if name in {"eval", "exec"} and isinstance(node.func, ast.Name):
            found.append(line + name)
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        if owner == "torch" and name == "load" and keywords.get("weights_only") is not True:
            found.append(line + "torch.load without weights_only=True")
        if owner in {"pickle", "joblib"} or keywords.get("allow_pickle") is True:
            found.append(line + "pickled data")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_loads_or_fails_silently(path: Path) -> None:
    assert not forbidden_constructs(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("net.load_state_dict(state, strict=False)", 1),
        ("list(zip(a, b, strict=False))", 0),
        ("torch.load(path)", 1),
        ("torch.load(path, weights_only=True)", 0),
        ("torch.load(path, weights_only=False)", 1),
        ("np.load(path, allow_pickle=True)", 1),
        ("pickle.load(handle)", 1),
        ("model.eval()", 0),
        ("eval(text)", 1),
        ("try:\n    f()\nexcept:\n    pass", 1),
    ],
)
def test_the_search_for_silent_failures_finds_them(code: str, count: int) -> None:
    assert len(forbidden_constructs(ast.parse(code))) == count


METHOD_ROOMS = ("degradation", "diffusion", "images", "metrics", "models", "pipelines", "training")


@pytest.mark.parametrize("room", METHOD_ROOMS)
def test_methods_do_not_ask_which_profile_they_run_in(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                sides = {ast.unparse(side).split(".")[-1] for side in [node.left, *node.comparators]}
                assert not ("profile" in sides and sides & {"'toy'", "'paper'"}), f"{path}:{node.lineno}"
