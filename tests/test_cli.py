"""The command line: help, how it fails, doctor, weights, train, evaluate."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest
from typer.testing import CliRunner

from refbfr_core import errors
from refbfr_core.cli import examination, failures
from refbfr_core.cli.app import app

COMMANDS = ("doctor", "restore", "train", "notebooks", "weights", "evaluate", "datasets")


@pytest.fixture
def cli():
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


def test_help_names_every_command_and_every_command_explains_itself(cli):
    shown = cli("--help")
    assert shown.exit_code == 0
    for command in COMMANDS:
        assert command in shown.output
        assert cli(command, "--help").exit_code == 0
    assert cli("--version").output.startswith("refbfr_core ")


def test_help_loads_nothing_heavy():
    code = "import sys; sys.argv = ['refbfr', '--help']; from refbfr_core.cli.app import main\n"
    code += "try:\n    main()\nexcept SystemExit as end:\n    assert end.code in (0, None)\n"
    code += "print([name for name in ('torch', 'numpy', 'diffusers', 'cv2', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip().endswith("[]"), done.stdout


def test_unknown_commands_and_options_name_the_nearest(cli):
    shown = cli("restor")
    assert shown.exit_code == 2
    assert "restore" in shown.output
    assert "--out" in cli("restore", "a.png", "--ot", "b.png").output


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.WeightsError("the file is short.\n  Copy it again."), "the file is short. Copy it again."),
        (errors.unknown_name("metric", "psnrr", ["psnr"]), "Did you mean 'psnr'?"),
        (PermissionError(13, "Permission denied", "/x"), "may use it"),
        (MemoryError(), "out of memory"),
        (ZeroDivisionError("division by zero"), "This is a bug: run again with --debug"),
    ],
)
def test_failures_are_one_line_with_exit_code_1(cli, monkeypatch, error, said):
    def fail():
        raise error

    monkeypatch.setattr(examination, "examine", fail)
    shown = cli("doctor")
    assert shown.exit_code == 1
    assert shown.stderr.startswith("error: ")
    assert shown.stderr.count("\n") == 1
    assert said in shown.stderr
    assert "Traceback" not in shown.output
    for arguments in (("--debug", "doctor"), ("doctor", "--debug")):
        debugged = cli(*arguments)
        assert debugged.exit_code == 1
        assert "Traceback" in debugged.stderr
        assert debugged.stderr.splitlines()[-1].startswith("error: ")


def test_an_interrupt_is_no_failure_of_ours(cli, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(examination, "examine", interrupted)
    shown = cli("doctor")
    assert shown.exit_code == 130
    assert "error" not in shown.output


# ---- doctor


def _only(findings, section):
    return [finding for finding in findings if finding.section == section]


def test_doctor_reports_all_sections_and_cures(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("REFBFR_INSIGHTFACE_ROOT", str(tmp_path))
    shown = cli("doctor", "--json")
    report = json.loads(shown.stdout)
    findings = [examination.Finding(**finding) for finding in report["findings"]]
    assert {"machine", "weights, toy", "weights, paper", "photographs", "datasets"} <= {one.section for one in findings}
    assert all(finding.cure for finding in findings if finding.status != examination.OK)
    assert report["ok"] == (not examination.is_broken(findings))
    assert shown.exit_code == (0 if report["ok"] else 1)
    (pack,) = _only(findings, "photographs")
    assert pack.status == examination.MISSING
    assert str(tmp_path) in pack.detail
    plain = cli("doctor")
    for finding in findings:
        assert f"{finding.name}: " in plain.output
    assert ("BROKEN" in plain.output) == (not report["ok"])


def test_doctor_finds_a_pack(tmp_path, monkeypatch):
    (tmp_path / "models" / "kit").mkdir(parents=True)
    (tmp_path / "models" / "kit" / "det.onnx").write_bytes(b"x")
    monkeypatch.setenv("REFBFR_INSIGHTFACE_ROOT", str(tmp_path))
    (pack,) = _only(examination.examine(), "photographs")
    assert (pack.status, pack.cure) == (examination.OK, "")
    assert "kit" in pack.detail


def test_doctor_tells_missing_from_broken(cli, monkeypatch):
    asked = {
        "": ["torch>=1", "numpy>=99", "surely-not-installed>=1"],
        "photos": ["numpy>=1", "surely-not-installed>=1"],
    }
    monkeypatch.setattr(examination, "_requirements", lambda: asked)
    findings = examination.examine()
    by_name = {finding.name: finding for finding in _only(findings, "packages")}
    assert by_name["torch"].status == examination.OK
    assert by_name["numpy"].status == by_name["surely-not-installed"].status == examination.BROKEN
    assert "pip install 'numpy>=99'" in by_name["numpy"].cure
    (photos,) = _only(findings, "extras")
    assert photos.status == examination.MISSING
    assert "surely-not-installed" in photos.detail
    assert "numpy" not in photos.detail
    assert "refbfr_core[photos]" in photos.cure
    assert cli("doctor").exit_code == 1


def test_doctor_takes_missing_optional_things_calmly(cli, monkeypatch):
    fine = examination.Finding("machine", "python", examination.OK, "3")
    missing = examination.Finding("photographs", "pack", examination.MISSING, "none", "get one")
    monkeypatch.setattr(examination, "examine", lambda: [fine, missing])
    shown = cli("doctor")
    assert shown.exit_code == 0
    assert "toy profile is ready; 1 optional things are missing" in shown.output
    assert "-> get one" in shown.output
    monkeypatch.setattr(
        examination, "examine", lambda: [fine, examination.Finding("x", "y", examination.BROKEN, "z", "c")]
    )
    assert cli("doctor").exit_code == 1


def test_requirements_come_from_the_installed_package():
    pytest.importorskip("packaging")
    try:
        asked = examination._requirements()
    except examination.metadata.PackageNotFoundError:
        pytest.skip("the package runs from a source tree that is not installed")
    assert any(requirement.startswith("torch") for requirement in asked[""])
    assert any(requirement.startswith("insightface") for requirement in asked["photos"])
    assert not any(requirement.startswith("insightface") for requirement in asked[""])
    assert not any(requirement.startswith("torch>") for requirement in asked["photos"])


# ---- weights


def test_weights_list_names_purpose_recipe_and_licence(cli):
    shown = cli("weights", "list")
    assert shown.exit_code == 0
    for word in ("judge", "refldm-unet", "refbfr train embedder-judge", "licence"):
        assert word in shown.output


def test_weights_verify_finds_every_kind_of_damage(cli, tmp_path):
    from refbfr_core.models import FaceEmbedder
    from refbfr_core.weights import save_network

    card = {"summary": "a test", "training_data": "none", "recipe": {"steps": 0}}
    folder = save_network(
        FaceEmbedder(widths=(4, 4), blocks=(1, 1), embedding_dim=8, input_size=16), "judge", tmp_path, card
    )
    whole = cli("weights", "verify", "judge", "--root", tmp_path)
    assert whole.exit_code == 0
    assert "judge: whole" in whole.output
    everything = cli("weights", "verify", "--root", tmp_path)
    assert everything.exit_code == 1
    assert "guide: BROKEN" in everything.output
    assert "judge: whole" in everything.output
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    damaged = cli("weights", "verify", "judge", "--root", tmp_path)
    assert damaged.exit_code == 1
    assert "truncated" in damaged.output
    assert "'judge'" in cli("weights", "verify", "jugde").stderr


# ---- train and evaluate hand over


def test_train_hands_its_options_over(cli, monkeypatch):
    import refbfr_core

    calls = []
    training = types.ModuleType("refbfr_core.training")
    training.run = lambda name, **options: calls.append((name, options)) or "the/export"
    monkeypatch.setitem(sys.modules, "refbfr_core.training", training)
    monkeypatch.setattr(refbfr_core, "training", training, raising=False)
    shown = cli("train", "refldm-base", "--steps", 7, "--resume", "--set", "lr=0.1", "--set", "widths=8,16")
    assert shown.exit_code == 0, shown.output
    ((name, options),) = calls
    assert name == "refldm-base"
    assert "exported to the/export" in shown.output
    assert (options["steps"], options["resume"], options["lr"], options["widths"]) == (7, True, "0.1", "8,16")
    assert options["out"].as_posix() == "runs/refldm-base"
    wrong = cli("train", "refldm-base", "--set", "lr")
    assert wrong.exit_code == 1
    assert "KEY=VALUE" in wrong.stderr


def test_train_names_the_nearest_recipe_and_value(cli, tmp_path):
    assert "Did you mean 'refldm-base'?" in cli("train", "refldm-bas", "--out", tmp_path / "run").stderr
    wrong = cli("train", "refldm-base", "--out", tmp_path / "run", "--set", "learning_rate=1")
    assert wrong.exit_code == 1
    assert "lr_schedule" in wrong.stderr
    assert not (tmp_path / "run").exists()


def test_evaluate_references_prints_the_table_and_fails_when_rows_failed(cli, monkeypatch, tmp_path):
    import refbfr_core.benchmark as benchmark

    class Study:
        def __init__(self, failures):
            self.failures = failures

        def __str__(self):
            return "the table"

    for failures_, code in (([], 0), (["one"], 1)):
        calls = []
        monkeypatch.setattr(
            benchmark,
            "run_reference_study",
            lambda *a, f=failures_, c=calls, **k: c.append((a, k)) or Study(f),
            raising=False,
        )
        done = cli("evaluate", "references", "--people", 6, "--steps", 3, "--out", tmp_path)
        assert (done.exit_code, done.stdout) == (code, "the table\n")
        (((people, preset, count, steps, guidance, seed, out), options),) = calls
        assert (people, preset, count, steps, guidance, seed, out) == (6, "toy-refldm-severe", 4, 3, None, 0, tmp_path)
        assert options == {"counts": None, "pipeline": None, "device": None}
    assert cli("evaluate", "references", "--people", "many").exit_code == 2


def test_notes_and_warnings_stay_out_of_the_results(capsys):
    failures.note("a")
    failures.warn("b")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "note: a\nwarning: b\n"
