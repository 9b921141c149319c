"""Tables as frames, text, Markdown, LaTeX and HTML, and the log of what keeps them from being reproductions."""

from __future__ import annotations

import html.parser
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from table_rows import random_rows, table_rows

from refbfr_core.benchmark import PAPERS, published
from refbfr_core.benchmark.tables.cases import TableDataset
from refbfr_core.benchmark.tables.discrepancies import discrepancies_markdown, known_inconsistencies
from refbfr_core.benchmark.tables.formats import latex_text, markdown_text
from refbfr_core.benchmark.tables.published_cells import published_cells
from refbfr_core.benchmark.tables.report import FILES, FRAME, TableReport, write_report
from refbfr_core.benchmark.tables.sheets import digits, number, printed
from refbfr_core.benchmark.tables.significance import DEG_VQFR
from refbfr_core.benchmark.tables.specs import TABLES, table_spec
from refbfr_core.benchmark.tables.systems import Arm
from refbfr_core.errors import ConfigError, UnknownNameError

INPUT, CODEFORMER, REFLDM, DMDNET = ("Input", "none"), ("CodeFormer", "none"), ("ReF-LDM", "right"), ("DMDNet", "right")
PRINTED_IDS = {"CodeFormer": 0.323, "ReF-LDM": 0.676, "DMDNet": 0.185}
HOSTILE = r'<b>|x|</b> & 50%_of_#1 {$y^2$} ~ \end{tabular} "q" `c` *s*' + "\nnext"


class Cells(html.parser.HTMLParser):
    """Counts tags and collects the texts of cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def cell(frame: pd.DataFrame, system: str, metric: str, dataset: str = "ffhq-ref-severe") -> pd.Series:
    own = frame[(frame.system == system) & (frame.metric == metric) & (frame["dataset"] == dataset)]
    assert len(own) == 1
    return own.iloc[0]


@pytest.fixture
def paper_rows() -> pd.DataFrame:
    """40 pictures of 20 people, measured near the printed IDS, DMDNet without a quarter of them."""
    rng = np.random.default_rng(0)
    scores = {
        CODEFORMER: list(0.323 + 0.05 * rng.normal(size=40)),
        REFLDM: list(0.5 + 0.05 * rng.normal(size=40)),
        DMDNET: [None if k % 4 == 0 else 0.2 + 0.05 * rng.normal() for k in range(40)],
    }
    groups = [f"person-{k // 2}" for k in range(40)]
    return table_rows({"ids": scores}, "ffhq-ref-severe", groups, "ImageFileError: no picture")


@pytest.fixture
def paper_report(paper_rows) -> TableReport:
    dataset = TableDataset("ffhq-ref-severe", "FFHQ-Ref, severe", "Five references.", (), 512, True, True, 857)
    return TableReport(paper_rows, spec=table_spec("refldm-results"), datasets=[dataset])


# --- published | measured | difference --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TABLES if TABLES[name].paper])
def test_every_published_cell_of_a_table_stands_in_its_frame_exactly_once(name):
    spec = TABLES[name]
    expected = published(spec.paper, missing=True)
    expected = expected[expected.table.isin(spec.published_tables)]
    frame = TableReport(spec=spec).frame()
    shown = frame[frame.table != ""].fillna({"published": -1})
    expected = expected.fillna({"value": -1})
    found = sorted(map(tuple, shown[["table", "printed_metric", "published"]].to_numpy().tolist()))
    assert found == sorted(map(tuple, expected[["table", "metric", "value"]].to_numpy().tolist()))
    assert not shown.duplicated(["dataset", "system", "references", "metric"]).any()


def test_published_values_meet_the_right_arm_and_metric(paper_report):
    frame = paper_report.frame()
    for system, value in PRINTED_IDS.items():
        found = cell(frame, system, "ids")
        assert found.published == value and found.difference == pytest.approx(found.measured - value)
    assert cell(frame, "CodeFormer", "lpips").published == 0.398
    assert cell(frame, "CodeFormer", "fid").published == 51.51
    assert list(frame.columns) == list(FRAME)


def test_numbers_of_wrong_references_are_never_held_against_printed_ones():
    rows = random_rows([("ReF-LDM", "right"), ("ReF-LDM", "wrong")], {"ids": 0.5}, dataset="ffhq-ref-severe")
    frame = TableReport(rows, spec=table_spec("refldm-results")).frame()
    own = frame[(frame.system == "ReF-LDM") & (frame.metric == "ids") & (frame["dataset"] == "ffhq-ref-severe")]
    values = own.set_index("references").published
    assert values["right"] == 0.676 and np.isnan(values["wrong"])


def test_cells_that_no_source_tells_are_marked_and_not_taken_for_unpublished():
    rows = random_rows([("PDGrad", "right"), ("PGDiff", "right"), INPUT], {"psnr": 24.0}, dataset="celebref-hq")
    report = TableReport(rows, spec=table_spec("pdgrad-2"))
    found = cell(report.frame(), "PDGrad", "psnr", "celebref-hq")
    assert np.isnan(found.published) and np.isnan(found.difference) and found.note.startswith("missing: ")
    lines = {line.split("  ")[0]: line for line in report.text().split("\n")}
    assert lines["PDGrad, right"].count("not recovered") > lines["Input"].count("not recovered") == 0
    assert "not published" in lines["Input"] and "no source at hand tells it" in " ".join(report.text().split())
    assert any("missing: " in what for what in report.discrepancies().what)


def test_splits_printed_as_one_are_measured_together_only_when_all_are_there():
    spec = table_spec("ldbfr-1")
    names = list(spec.datasets)
    arms = [("CodeFormer", "none"), ("GPEN", "none")]
    parts = [random_rows(arms, {"psnr": 22.0}, seed=k, dataset=name) for k, name in enumerate(names)]
    printed_name = spec.datasets[names[0]]
    part = cell(TableReport(pd.concat(parts[:2]), spec=spec).frame(), "CodeFormer", "psnr", printed_name)
    assert np.isnan(part.measured) and part.published == 22.4254
    whole = cell(TableReport(pd.concat(parts), spec=spec).frame(), "CodeFormer", "psnr", printed_name)
    assert whole.n == 60 and whole.groups == 20 and not np.isnan(whole.difference)


def test_what_is_missing_says_so_and_why(paper_report):
    text = paper_report.text()
    assert text.count("not measured") > 3 and "0.231" in text  # LDM has a printed number and no rows
    why = cell(paper_report.frame(), "LDM", "ids").why
    assert "no rows in this run" in why and "checkpoint" in why and why in " ".join(text.split())
    assert cell(paper_report.frame(), "CodeFormer", "lpips").why == "not among the metrics of this run"
    rows = random_rows([INPUT, CODEFORMER], {"ids": 0.4}, dataset="ffhq-ref-severe")
    assert "not published" in TableReport(rows, spec=table_spec("refldm-results")).text()


def test_reasons_of_the_run_come_before_general_ones(paper_rows):
    report = TableReport(
        paper_rows.assign(lpips=np.nan),
        spec=table_spec("refldm-results"),
        not_run={"VQFR": "its folder is empty"},
        unmeasured={"ffhq-ref-severe": {"lpips": "VGG-16 is not here"}},
    )
    assert cell(report.frame(), "VQFR", "ids").why.endswith("its folder is empty")
    assert cell(report.frame(), "CodeFormer", "lpips").why == "VGG-16 is not here"


def test_sets_of_pictures_have_values_without_intervals(paper_rows):
    sets = pd.DataFrame(
        [
            ("ffhq-ref-severe", "CodeFormer", "none", "fid", 50.0, np.nan, 40, "FFHQ", "FID (FFHQ, n=40)", ""),
            ("ffhq-ref-severe", "ReF-LDM", "right", "fid", 45.0, np.nan, 40, "FFHQ", "FID (FFHQ, n=40)", ""),
            ("ffhq-ref-severe", "DMDNet", "right", "fid", np.nan, np.nan, 30, "FFHQ", "", "30 pictures are too few"),
        ],
        columns=["dataset", "system", "references", "metric", "value", "spread", "n", "reference", "column", "reason"],
    )
    frame = TableReport(paper_rows, set_rows=sets, spec=table_spec("refldm-results")).frame()
    best = cell(frame, "ReF-LDM", "fid")
    assert best.best and best.kind == "set" and np.isnan(best.low) and best.difference == pytest.approx(45 - 37.6)
    assert "FID (FFHQ, n=40)" in best.protocol
    assert cell(frame, "DMDNet", "fid").why == "30 pictures are too few" and cell(frame, "DMDNet", "fid").failed == 10


def test_both_protocols_of_deg_stand_side_by_side():
    rows = random_rows([INPUT, CODEFORMER], {"deg": 1.0})
    assert DEG_VQFR not in set(TableReport(rows).frame().metric)
    frame = TableReport(rows, deg_vqfr=True).frame()
    assert set(frame.metric) == {"deg", DEG_VQFR}
    assert cell(frame, "Input", DEG_VQFR, "drawn-mild").n < cell(frame, "Input", "deg", "drawn-mild").n
    rows = random_rows([("PDGrad", "right"), ("PGDiff", "right")], {"deg": 50.0, "niqe": 4.0}, dataset="celebref-hq")
    found = TableReport(rows, spec=table_spec("pdgrad-2")).frame()
    order = [name for name in found.metric.unique() if name in rows or name == DEG_VQFR]
    assert order == ["niqe", "deg", DEG_VQFR]
    assert cell(found, "PDGrad", "deg", "celebref-hq").published == 53.9


# --- formats ----------------------------------------------------------------------------------------------------------


def test_every_format_marks_the_best_counts_failures_and_names_protocols(paper_report):
    texts = [paper_report.text(), paper_report.markdown(), paper_report.latex(), paper_report.html()]
    parts = (
        "FFHQ-Ref, severe", "Five references.", "40 pictures of 20 people; the paper counts 857", "0.323", "30 of 40",
        "10 failed (DMDNet, right): ImageFileError: no picture", "cosine of face embeddings",
    )  # fmt: skip
    for text in texts:
        assert not [part for part in parts if part not in text]
    assert re.search(r"ReF-LDM, right +0\.676 +0\.\d{3} ± 0\.\d{3}\* ", texts[0])
    assert re.search(r"\| ReF-LDM, right \| 0\.676 \| \*\*0\.\d{3} ± 0\.\d{3}\*\*\\\* ", texts[1])
    assert re.search(r"right & 0\.676 & \\textbf\{0\.\d{3} \$\\pm\$ 0\.\d{3}\}\\textsuperscript\{\*\}", texts[2])
    assert re.search(r'<th scope="row">ReF-LDM, right</th><td>0\.676</td><td><strong>0\.\d{3} ± ', texts[3])


def test_hostile_names_break_no_format():
    rows = random_rows([(HOSTILE, "none"), CODEFORMER], {"ids": 0.4}, dataset=HOSTILE, reason=HOSTILE)
    report = TableReport(rows)
    plain = random_rows([("plain", "none"), CODEFORMER], {"ids": 0.4}, dataset="plain")
    other = TableReport(plain)
    page, expected = Cells(report.html()), Cells(other.html())
    assert report._repr_html_() in report.html() and "<body" not in report._repr_html_()
    assert page.tags == expected.tags and " ".join(HOSTILE.split()) in page.texts
    body = re.search(r"\\midrule\n(.*)\\bottomrule", report.latex(), re.S).group(1)
    assert body.count("\\\\\n") == 2 and r"\textbackslash{}end\{tabular\}" in body
    assert all(len(re.findall(r"(?<!\\)&", line)) == 3 for line in body.strip().split("\n"))
    assert report.latex().count("\\end{tabular}") == 1
    lines = [line for line in report.markdown().split("\n") if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}
    assert report.text().count("\n") == other.text().count("\n")


@pytest.mark.parametrize("letter", list("\\{}&%$#_~^<>|±−×∞↑↓→†…–°\""))
def test_every_special_letter_of_latex_is_replaced(letter):
    commands = r"\\(text\w+|dag|ldots)\{\}|\\[{}&%$#_]|\$[^$]*\$"
    assert letter not in re.sub(commands, "", latex_text(letter))


def test_markdown_keeps_text_as_it_is():
    for letter in "\\`*_{}[]<>|#~$!":
        assert markdown_text(f"a{letter}b") == f"a\\{letter}b"
    assert markdown_text("a & b\n# c") == "a &amp; b \\# c"


def test_a_narrow_terminal_folds_columns_and_loses_none(paper_report):
    wide, narrow = paper_report.text(width=400), paper_report.text(width=60)
    cells = [line for line in narrow.split("\n") if re.match(r"(CodeFormer|method)", line)]
    assert cells and max(map(len, cells)) <= 80  # one group of three columns may be wider than asked
    for value in ("0.323", "0.398", "51.51", "0.108"):
        assert value in wide and value in narrow


def test_the_same_rows_give_the_same_bytes_in_any_order(paper_rows, paper_report, tmp_path):
    first = write_report(paper_report, tmp_path / "one")
    shuffled = TableReport(
        paper_rows.sample(frac=1, random_state=1), spec=paper_report.spec, datasets=paper_report.datasets
    )
    second = write_report(shuffled, tmp_path / "two")
    assert [path.name for path in first] == list(FILES)
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
    again = pd.read_csv(first[3])
    assert len(again) == len(paper_report.frame()) and list(again.columns) == list(FRAME)


def test_times_come_only_when_asked_for(paper_rows, paper_report):
    times = paper_rows[["dataset", "item", "system", "references"]].assign(seconds=0.25)
    timed = TableReport(paper_rows, times=times, spec=paper_report.spec)
    assert "s a picture" in timed.text() and "0.25 (0.25 to 0.25)" in timed.text()
    assert "s a picture" not in paper_report.text()


def test_wide_frames(paper_report):
    wide = paper_report.wide("ffhq-ref-severe")
    assert wide.loc["ReF-LDM, right", ("ids", "published")] == 0.676
    assert wide.loc["DMDNet, right", ("ids", "n")] == 30
    with pytest.raises(UnknownNameError, match="dataset of this table"):
        paper_report.wide("ffhq")


def test_what_is_no_table_is_refused():
    with pytest.raises(ConfigError, match="group"):
        TableReport(pd.DataFrame({"dataset": []})).frame()
    rows = random_rows([INPUT], {"ids": 0.3})
    with pytest.raises(ConfigError, match="spread"):
        TableReport(rows, set_rows=pd.DataFrame({"dataset": ["a"], "metric": ["fid"]})).frame()


def test_numbers_as_text():
    assert number(-0.0004, 3) == "0.000" and number(-0.0004, 3, sign=True) == "0.000"
    assert number(-1.5, 2) == "−1.50" and number(1.5, 1, sign=True) == "+1.5"
    assert number(float("inf"), 2) == "∞" and number(float("-inf"), 2, sign=True) == "−∞"
    assert [printed(value) for value in (13.44, 150000.0, 1e-5, float("inf"))] == ["13.44", "150000", "0.00001", "∞"]
    assert [digits([value]) for value in (0.676, 25.14, 1234.5, 0.03, 0.001, 0.0)] == [3, 2, 1, 4, 5, 3]


# --- discrepancies ----------------------------------------------------------------------------------------------------


def test_the_log_has_every_kind_of_entry(paper_report):
    log = paper_report.discrepancies()
    assert list(log.kind.unique()) == ["paper", "protocol", "value", "count", "failures"]
    value = log[(log.kind == "value") & (log.arm == "ReF-LDM, right")].iloc[0]
    assert value.published == 0.676 and value.high < 0 and value.difference == pytest.approx(value.measured - 0.676)
    # CodeFormer was measured where it was printed: no entry.
    assert not ((log.kind == "value") & (log.arm == "CodeFormer")).any()
    count = log[log.kind == "count"].iloc[0]
    assert (count.n, count.expected) == (40, 857)
    failures = log[log.kind == "failures"]
    assert list(failures.arm) == ["DMDNet, right"] and "10 of 40" in failures.what.iloc[0]
    assert any("excludes 214 of 857" in what for what in log[log.kind == "protocol"].what)
    text = discrepancies_markdown(log, paper_report.title)
    assert text.count("\n## ") == 5 and "None." not in text


def test_an_empty_log_says_none():
    log = TableReport(random_rows([INPUT, CODEFORMER], {"ids": 0.3})).discrepancies()
    assert log.empty and discrepancies_markdown(log, "toy").count("None.") == 5


def test_known_inconsistencies_name_tables_that_exist():
    known = known_inconsistencies()
    assert set(known.paper) == set(PAPERS)
    assert not known.duplicated(["paper", "what"]).any() and (known[["what", "treatment"]] != "").all(axis=None)
    tables = published().groupby("paper").table.agg(set)
    for row in known.itertuples():
        assert set(filter(None, row.tables.split("; "))) <= tables[row.paper], row
    own = known_inconsistencies("DiffMAC", ["Table 3"])
    assert len(own) == 3 and set(own.paper) == {"DiffMAC"}
    with pytest.raises(UnknownNameError, match="paper"):
        known_inconsistencies("PULSE")


def test_numbers_that_known_inconsistencies_quote_are_the_published_ones():
    numbers = published()
    for row in known_inconsistencies("DiffMAC").itertuples():
        own = numbers[(numbers.paper == "DiffMAC") & numbers.table.isin(row.tables.split("; "))].value
        other = numbers[(numbers.paper == "LD-BFR") & (numbers.table == "Table 2")].value
        for quoted in map(float, re.findall(r"(?<![\w.])\d+\.\d\d+(?!\w)", row.what)):
            if quoted in (0.3, 0.001, 0.01):
                continue
            assert np.isclose([*own, *other], quoted, atol=0.006).any(), (quoted, row.what)


def test_two_tables_of_one_paper_never_share_a_cell():
    spec = SimpleNamespace(
        paper="PDGrad", published_tables=("Table 2", "Table 4"), datasets={}, arms=(Arm("PDGrad", "right"),),
        metrics={"niqe": "NIQE"}, set_metrics={},
    )  # fmt: skip
    cells = published_cells(spec)
    assert not cells.duplicated(["dataset", "system", "references", "metric"]).any()
    assert set(cells[(cells.system == "PDGrad") & (cells.published == 3.39)].metric) == {"niqe", "niqe (Table 4)"}


@pytest.mark.parametrize(("people", "said"), [(3, True), (6, False)])
def test_intervals_from_few_people_are_said_to_say_little(people: int, said: bool) -> None:
    rows = random_rows([("Input", "none"), ("LDM", "none")], {"psnr": 20.0}, items=people)
    assert ("say little" in TableReport(rows).text()) == said
