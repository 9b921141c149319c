"""`refbfr weights`: which networks there are, and whether their files are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List the networks, or check their files.", no_args_is_help=True, rich_markup_mode=None)

_Profile = Annotated[str, typer.Option(help="toy or paper.")]
_Root = Annotated[Path | None, typer.Option(help="A folder written by `refbfr train` instead of the shipped networks.")]


@app.command("list")
def list_weights() -> None:
    """List every network the package knows: what it is for and where its weights come from."""
    from refbfr_core.weights import NETWORKS

    for name, entry in NETWORKS.items():
        typer.echo(f"{name}: {entry.purpose}")
        typer.echo(f"    toy: {_shipped(name)}; trained by `refbfr train {entry.recipe}`")
        for profile, published in entry.published.items():
            typer.echo(f"    {profile}: {published.filename} from {published.page} (licence: {published.licence})")


@app.command("verify")
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Networks to check; all when none is named.")] = None,
    root: _Root = None,
) -> None:
    """Compare every weight file with the size and SHA-256 on its card. Exit code 1 when one is missing or differs."""
    from refbfr_core.errors import WeightsError
    from refbfr_core.weights import NETWORKS, network_entry, shipped_root, verify_network

    chosen = [network_entry(name).name for name in names or NETWORKS]
    folder = root if root is not None else shipped_root("toy")
    broken = 0
    for name in chosen:
        try:
            record = verify_network(folder / name)
        except WeightsError as error:
            broken += 1
            typer.echo(f"{name}: BROKEN: {error}")
        else:
            total = sum(item["bytes"] for item in record["files"])
            typer.echo(f"{name}: whole, {len(record['files'])} files, {total / 2**20:.1f} MiB")
    if broken:
        raise WeightsError(
            f"{broken} of {len(chosen)} networks are missing or damaged; reinstall the package, or train them."
        )


def _shipped(name: str) -> str:
    """Say in a few words whether the shipped weights of a network are there; `verify` looks at every byte."""
    from refbfr_core.errors import WeightsError
    from refbfr_core.weights import read_card, shipped_root

    try:
        record = read_card(shipped_root("toy") / name)
    except WeightsError:
        return "not there"
    return f"{record['parameters']:,} parameters, ships with the package"
