"""The files of other people that the paper profile uses: what `refbfr weights list` says about each."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from refbfr_core.cli.app import app
from refbfr_core.errors import UnknownNameError
from refbfr_core.weights import PAPER_FILES, paper_file


def test_the_public_files_are_listed_with_owner_licence_and_use():
    shown = CliRunner().invoke(app, ["weights", "list"])
    assert shown.exit_code == 0
    for name, file in PAPER_FILES.items():
        assert file.name == name and file.page.startswith("https://") and file.url.startswith("https://")
        for text in (file.filename, file.page, file.url, file.licence, file.use):
            assert text in shown.stdout
        assert file.url in file.how_to_get() and file.licence in file.how_to_get()
    # As the owners' pages give them.
    assert paper_file("codeformer").url.endswith("sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth")
    assert "1XlpB873rHCn-T5UfUCXq_fAprhuBKR30" in paper_file("pgdiff-restorer").url
    assert all("non-commercial" in file.licence for name, file in PAPER_FILES.items() if name != "gfpgan")
    with pytest.raises(UnknownNameError, match="Did you mean 'codeformer'"):
        paper_file("codefomer")
