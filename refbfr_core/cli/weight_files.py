"""`refbfr weights`: the public files that are used as they are. Listing, fetching, comparing and taking them in."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refbfr_core.cli.failures import describe

if TYPE_CHECKING:
    from refbfr_core.weights import Asset


def list_files(details: bool) -> None:
    """Print every public file with its state; with `details` also address, digest and what to do with it."""
    from refbfr_core.weights import ASSETS, asset_state

    for name, asset in ASSETS.items():
        state = asset_state(name).state
        size = f", {asset.size / 2**20:.0f} MiB" if asset.size else ""
        by_hand = ", only by hand" if asset.by_hand else ""
        typer.echo(f"{name} ({state}): {asset.title}{size}{by_hand}; licence: {asset.licence}")
        if not details:
            continue
        typer.echo(f"    {asset.purpose}\n    {asset.page}")
        if asset.link != asset.page:
            typer.echo(f"    {asset.link}")
        known = asset.sha256 or (f"{asset.sha256_prefix}…" if asset.sha256_prefix else "written down on first use")
        typer.echo(f"    SHA-256: {known}")
        for remark in filter(None, (asset.use, asset.note)):
            typer.echo(f"    {remark}")


def get_files(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Files, as `refbfr weights list` calls them.")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licences that are shown, without being asked.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Fetch again what is here, and take a file that its owners changed.")
    ] = False,
) -> None:
    """Fetch public files from their owners. An interrupted download goes on where it stopped.

    Files lie in $REFBFR_WEIGHTS/files, or in the user's cache. With REFBFR_OFFLINE=1 no connection is made.
    """
    from refbfr_core.errors import RefbfrError, WeightsError
    from refbfr_core.weights import asset_entry, fetch_asset

    failed = 0
    for entry in [asset_entry(name) for name in names]:
        try:
            with _Bar(entry.title) as bar:
                path = fetch_asset(
                    entry.name,
                    accept=lambda asset: accepts(asset, accept_licence),
                    progress=bar.show,
                    replace=replace,
                )
        except RefbfrError as error:
            if len(names) == 1:
                raise
            failed += 1
            typer.echo(f"{entry.name}: NOT FETCHED: {describe(error)}")
        else:
            typer.echo(f"{entry.name}: {path}")
            if entry.use:
                typer.echo(f"    {entry.use}")
    if failed:
        raise WeightsError(f"{failed} of {len(names)} files were not fetched; see above.")


def verify_files(names: Sequence[str]) -> int:
    """Compare files with what is pinned or was written down; prints a line each and returns how many are not whole."""
    from refbfr_core.weights import asset_state

    broken = 0
    for name in names:
        state = asset_state(name, thorough=True)
        bad = state.state in ("altered", "not there")
        broken += bad
        typer.echo(f"{name}: {'BROKEN: ' if bad else 'whole, '}{state.detail}")
    return broken


def present_files() -> list[str]:
    """The names of the public files that are here, whole or not."""
    from refbfr_core.weights import ASSETS, asset_state

    return [name for name in ASSETS if asset_state(name).path is not None]


def take_in(path: Path, name: str, accept_licence: bool, replace: bool) -> None:
    """Copy one downloaded file into its place and say so."""
    from refbfr_core.weights.asset_import import import_asset

    place = import_asset(path, name, accept=lambda asset: accepts(asset, accept_licence), replace=replace)
    typer.echo(f"{name}: imported into {place}")


def accepts(asset: Asset, accepted: bool) -> bool:
    """Show the licence of a file; ask whether it is accepted where somebody can answer."""
    typer.echo(f"{asset.title} belongs to its authors: {asset.page}\nLicence: {asset.licence}.", err=True)
    if accepted:
        return True
    return sys.stdin.isatty() and typer.confirm("Do you accept it?", err=True)


class _Bar:
    """A progress bar that appears with the first byte; nothing where nobody watches."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, done: int, total: int | None) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=self._title, unit="B", unit_scale=True, disable=None)
        self._bar.update(done - self._bar.n)
