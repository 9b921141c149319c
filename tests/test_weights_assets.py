"""The registry of public files: complete, consistent, and the only place where an address stands."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pytest

import refbfr_core
from refbfr_core.errors import ConfigError, UnknownNameError
from refbfr_core.weights import ASSETS, NETWORKS, PAPER_FILES, Asset, asset_entry, asset_path
from refbfr_core.weights.asset import FREE, TERMS

_FILE = re.compile(r"`([\w.+*/-]+\.(?:pth|ckpt|npy|pkl|zip|pt|safetensors))`")
_HUB = re.compile(r"Hugging Face `([\w./-]+)`|huggingface\.co/([\w.-]+/[\w.-]+)")
_RELEASE = re.compile(r"(github\.com/[\w.-]+/[\w.-]+/releases/(?:tag|download)/[\w.-]+)")


def test_every_record_says_whose_it_is_what_for_and_on_which_terms():
    for name, asset in ASSETS.items():
        assert asset.name == name and asset.purpose and asset.licence and asset.terms in TERMS
        assert asset.page.startswith("https://") and asset.link.startswith("https://")
        assert asset.url is None or asset.url.startswith("https://")
        assert sum(map(bool, (asset.url, asset.store, asset.repository, asset.torchvision))) == 1, name
        assert asset.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", asset.sha256)
        assert not asset.sha256 or asset.sha256.startswith(asset.sha256_prefix)
        assert asset.size is None or asset.size > 0
        assert name in asset.how_to_get() or asset.filename in asset.how_to_get()
        if "non-commercial" in asset.licence:
            assert asset.non_commercial and asset.needs_acceptance, name
        if "not stated" in asset.licence or "S-Lab" in asset.licence or "restrict" in asset.licence:
            assert asset.needs_acceptance, name
        if asset.by_hand:
            assert "refbfr weights import" in asset.how_to_get() and asset.store in asset.how_to_get()


def test_names_and_addresses_stand_once():
    assert len({name.casefold() for name in ASSETS}) == len(ASSETS)
    addresses = Counter(asset.repository or asset.address() for asset in ASSETS.values() if not asset.by_hand)
    assert addresses.most_common(1)[0][1] == 1
    # A file is recognised by its name when it is imported, so no two may share one.
    filenames = Counter(asset.filename.casefold() for asset in ASSETS.values() if asset.filename)
    assert filenames.most_common(1)[0][1] == 1
    sources = [path.read_text() for path in Path(refbfr_core.__file__).parent.rglob("*.py")]
    for asset in ASSETS.values():
        if asset.url:
            assert sum(asset.url in text for text in sources) <= 1, asset.url


def test_the_older_registries_are_views_of_this_one():
    files = {asset.link: asset for asset in ASSETS.values()}
    published = [file for entry in NETWORKS.values() for file in (*entry.published.values(), *entry.also)]
    assert len(published) >= 8
    for file in published:
        asset = files[file.url]
        assert (file.page, file.licence, file.sha256, file.note) == (
            asset.page, asset.licence, asset.sha256, asset.note)  # fmt: skip
    for name, file in PAPER_FILES.items():
        asset = ASSETS[name]
        shared = [field.name for field in fields(file) if field.name != "url"]
        assert all(getattr(file, field) == getattr(asset, field) for field in shared) and file.url == asset.link


def test_owners_put_the_first_digits_of_a_digest_into_these_names():
    named = [asset for asset in ASSETS.values() if asset.sha256_prefix]
    assert {"lpips-vgg16", "lpips-alexnet", "lpips-squeezenet", "inception-fid", "musiq-koniq"} <= {
        asset.name for asset in named
    }
    assert all(f"-{asset.sha256_prefix}." in asset.filename for asset in named)


def test_every_file_of_the_methods_map_is_there(shared_dir):
    text = (shared_dir / "spec" / "methods_map.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 15
    names = {asset.filename for asset in ASSETS.values()}
    repositories = " ".join(f"{asset.repository} {asset.page} {asset.url}" for asset in ASSETS.values())
    for row in rows:
        # The map says of this one that the authors' page does not have it.
        for file in set(_FILE.findall(row)) - {"ldm.ckpt"}:
            assert file in names or file.split("/")[0] in names, file
        for groups in _HUB.findall(row):
            assert next(filter(None, groups)) in repositories, groups
        for release in _RELEASE.findall(row):
            assert any(release in f"{asset.page} {asset.url}" for asset in ASSETS.values()), release
    # In words, without a file's name.
    assert {"asffnet", "dr2", "sparnethd", "pgdiff-restorer", "pgdiff-arcface", "stable-diffusion-2-1-base",
            "ldm-celebahq", "gpen-512"} <= ASSETS.keys()  # fmt: skip
    assert "ldm.ckpt" not in names


def test_unknown_names_and_terms():
    with pytest.raises(UnknownNameError, match="Did you mean 'codeformer'"):
        asset_entry("codefomer")
    with pytest.raises(UnknownNameError, match="restoreformer"):
        asset_path("restoreformr")
    with pytest.raises(ConfigError, match="terms 'whatever'"):
        replace(ASSETS["gfpgan"], terms="whatever")
    assert not Asset("x", "x", "x", "x", "x", FREE).needs_acceptance


@pytest.mark.parametrize("name", ["lpips-vgg16", "lpips-alexnet", "lpips-squeezenet"])
def test_torchvision_knows_where_its_files_are(name: str) -> None:
    asset = ASSETS[name]
    assert not asset.by_hand and asset.address().endswith(f"/{asset.filename}")
