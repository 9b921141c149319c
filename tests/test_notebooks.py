"""The committed notebooks: in step with their sources, executed, small, described in words, and honest about it all."""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LARGEST = 700_000

pytestmark = pytest.mark.skipif(not NOTEBOOKS, reason="the notebooks come with a clone of the workbook")


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def text(cell: dict) -> str:
    return "".join(cell["source"])


def prose(path: Path) -> str:
    return "\n".join(text(cell) for cell in cells(path, "markdown"))


def solutions(path: Path) -> list[str]:
    folded = re.findall(r"<details>.*?</details>", prose(path), re.DOTALL)
    return [block for part in folded for block in re.findall(r"```python\n(.*?)```", part, re.DOTALL)]


every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@every_notebook
def test_notebook_is_in_step_with_its_source(path):
    pytest.importorskip("jupytext")
    nbformat = pytest.importorskip("nbformat")
    spec = importlib.util.spec_from_file_location("build_notebooks", ROOT / "notebooks" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    source = build.converted(ROOT / "notebooks" / "src" / f"{path.stem}.py")
    cure = f"run: python notebooks/build.py --execute {path.stem[:2]}"
    assert build.content(source) == build.content(nbformat.read(path, as_version=4)), cure


def test_every_source_has_its_notebook():
    assert [path.stem for path in NOTEBOOKS] == [p.stem for p in sorted((ROOT / "notebooks" / "src").glob("*.py"))]


@every_notebook
def test_notebook_was_executed_in_order_without_errors(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]
    noise = [output["text"] for cell in code for output in cell["outputs"] if output.get("name") == "stderr"]
    assert noise == [], "a warning is shown to the reader"


@every_notebook
def test_notebook_is_small_and_names_no_machine(path):
    content = path.read_text(encoding="utf-8")
    assert len(content.encode("utf-8")) <= LARGEST
    assert not re.search(r"/(home|root|tmp|Users|work)/", re.sub(r'"[A-Za-z0-9+/=\\n]{200,}"', "", content))


@every_notebook
def test_every_picture_has_words(path):
    for cell in cells(path, "code"):
        for output in cell["outputs"]:
            data, metadata = output.get("data", {}), output.get("metadata", {})
            for mime in ("image/png", "image/jpeg"):
                if mime in data:
                    assert len(metadata.get(mime, {}).get("alt", "")) >= 15, text(cell)[:200]
            assert all(
                re.search(r'\balt="[^"]+"', tag)
                for tag in re.findall(r"<img[^>]*>", "".join(data.get("text/html", [])))
            )


@every_notebook
def test_parameters_come_first_and_default_to_the_toy_profile(path):
    code = cells(path, "code")
    tagged = [index for index, cell in enumerate(code) if "parameters" in cell["metadata"].get("tags", [])]
    assert tagged == [0]
    names = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(text(code[0])).body}
    assert names["profile"] == "toy" and names["seed"] == 0


@every_notebook
def test_code_cells_are_short(path):
    long = {text(cell).splitlines()[0]: len(text(cell).splitlines()) for cell in cells(path, "code")}
    assert max(long.values()) <= 25, {first: count for first, count in long.items() if count > 25}


@every_notebook
def test_notebook_has_its_parts(path):
    words = prose(path)
    assert words.startswith(f"# {path.stem[:2]} · ") and "**After this notebook you can**" in words
    for heading in ("## Checks", "## Exercises", "## At full scale", "## References"):
        assert f"\n{heading}\n" in f"\n{words}\n", heading
    assert 2 <= words.count("<details><summary>Solution</summary>") == words.count("</details>") <= 3
    assert text(cells(path, "code")[-1]).lstrip().startswith("nb.check")
    printed = "".join("".join(o.get("text", "")) for o in cells(path, "code")[-1]["outputs"])
    assert printed.count("✓") >= 4


@every_notebook
def test_solutions_use_what_the_notebook_defines(path):
    tree = ast.parse("\n".join(text(cell) for cell in cells(path, "code")))
    for solution in solutions(path):
        extended = ast.Module([*tree.body, *ast.parse(solution).body], [])
        known = set(dir(builtins))
        for node in ast.walk(extended):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                known.add(node.id)
            elif isinstance(node, ast.arg):
                known.add(node.arg)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                known.add(node.name)
            elif isinstance(node, ast.alias):
                known.add((node.asname or node.name).split(".")[0])
        used = {node.id for node in ast.walk(ast.parse(solution)) if isinstance(node, ast.Name)}
        assert used <= known, used - known


@every_notebook
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", prose(path)):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@every_notebook
def test_saved_figures_are_there_with_their_provenance(path):
    saved = re.findall(
        r'book\.save\(\s*figure,\s*"([a-z0-9_-]+)"', "\n".join(text(cell) for cell in cells(path, "code"))
    )
    assert saved, "every notebook exports at least one figure"
    for name in saved:
        sidecar = json.loads((ROOT / "figures" / f"{name}.json").read_text(encoding="utf-8"))
        picture = (ROOT / "figures" / sidecar["figure"]).read_bytes()
        assert hashlib.sha256(picture).hexdigest() == sidecar["sha256"]
        assert sidecar["made_by"] == f"notebooks/{path.name}" and len(sidecar["alt"]) >= 15
