"""`refbfr weights`: which networks and files there are, whether they are whole, and getting the authors' own files."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refbfr_core.cli import weight_files
from refbfr_core.cli.failures import warn

if TYPE_CHECKING:
    from refbfr_core.weights.sources import PublishedFile

app = typer.Typer(
    help="List networks and public files, get, check or import them.", no_args_is_help=True, rich_markup_mode=None
)
app.command("get")(weight_files.get_files)

_Profile = Annotated[str, typer.Option(help="toy or paper.")]
_Root = Annotated[Path | None, typer.Option(help="A folder written by `refbfr train` instead of the shipped networks.")]


@app.command("list")
def list_weights(
    assets: Annotated[bool, typer.Option("--assets", help="Only the public files, with all that is known.")] = False,
) -> None:
    """List every network the package knows, and every public file: what it is for and where it comes from."""
    if assets:
        weight_files.list_files(details=True)
        return
    from refbfr_core.weights import NETWORKS, PAPER_FILES, imported_from

    for name, entry in NETWORKS.items():
        typer.echo(f"{name}: {entry.purpose}")
        typer.echo(f"    toy: {_shipped(name)}; trained by `refbfr train {entry.recipe}`")
        for profile, published in entry.published.items():
            there = imported_from(name)
            state = f"imported, SHA-256 {there['sha256']}" if there else "not imported"
            typer.echo(
                f"    {profile}: {published.filename} from {published.page} (licence: {published.licence}); {state}"
            )
            for other in (published, *entry.also):
                if other is not published:
                    typer.echo(f"        or {other.filename} from {other.page} (licence: {other.licence})")
                if other.note:
                    typer.echo(f"        {other.note}")
        if entry.unpublished:
            typer.echo(f"    paper: nothing to import, {entry.unpublished}")
    typer.echo("\nFiles of others that the paper profile uses as they are; nothing of these is fetched unasked:")
    for name, file in PAPER_FILES.items():
        typer.echo(f"{name}: {file.purpose}")
        typer.echo(f"    {file.filename} from {file.page} (licence: {file.licence})")
        typer.echo(f"    {file.url}")
        typer.echo(f"    {file.use}")
    typer.echo("\nPublic files of systems and metrics (refbfr weights get NAME; more with --assets):")
    weight_files.list_files(details=False)


@app.command("verify")
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Networks and public files; all that are here when none is named.")
    ] = None,
    root: _Root = None,
    profile: _Profile = "toy",
) -> None:
    """Compare files with the size and SHA-256 on their card or record. Exit code 1 when one is missing or differs."""
    from refbfr_core.errors import WeightsError
    from refbfr_core.weights import ASSETS, NETWORKS, network_entry, published_root, shipped_root, verify_network
    from refbfr_core.weights.registry import check_profile

    check_profile(profile)
    folder = root if root is not None else shipped_root() if profile == "toy" else published_root(profile)
    if profile == "toy":
        known = [name for name, entry in NETWORKS.items() if entry.shipped]
    else:
        published = [name for name, entry in NETWORKS.items() if profile in entry.published]
        # The papers' files are independent of each other: whoever imported some is not asked for the rest.
        known = [name for name in published if (folder / name).exists()] or published
    files = [name for name in names or () if name in ASSETS and name not in NETWORKS]
    chosen = [network_entry(name).name for name in (names or known) if name not in files]
    if not names and root is None:
        files = weight_files.present_files()
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
    if broken_files := weight_files.verify_files(files):
        raise WeightsError(
            f"{broken_files} of {len(files)} public files"
            + (f" and {broken} of {len(chosen)} networks" if broken else "")
            + " are missing or damaged; see above."
        )
    if broken:
        raise WeightsError(
            f"{broken} of {len(chosen)} networks are missing or damaged; "
            + ("reinstall the package, or train them." if profile == "toy" else "import their files again.")
        )


@app.command("import")
def import_files(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="The authors' files, as downloaded.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the licence that is shown, without being asked.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace networks that came from other files.")] = False,
    root: Annotated[
        Path | None, typer.Option(help="Folder for the networks. Else $REFBFR_WEIGHTS/paper, or the user's cache.")
    ] = None,
    as_name: Annotated[
        str, typer.Option("--as", metavar="NAME", help="The one FILE is the public file of this name.")
    ] = "",
    from_hub: Annotated[
        str,
        typer.Option(
            metavar="OWNER/NAME",
            help="Fetch Stable Diffusion 2.1-base (5.2 GB) from this repository of the Hugging Face hub and import it.",
        ),
    ] = "",
) -> None:
    """Take in files from the authors' pages: as networks of the paper profile, or as they are.

    Files of networks are converted, once. They are read as tensors only: nothing in them is run, and every name and
    shape is checked. Other public files (`refbfr weights list`) are known by their name or SHA-256, compared, and
    copied. A file may be deleted afterwards. An import that was interrupted is simply started again.
    """
    from refbfr_core.errors import ConfigError, WeightsError
    from refbfr_core.weights.asset_import import recognise_asset
    from refbfr_core.weights.sources import SD21_BASE

    given, agreed = list(files or []), []
    if as_name and (len(given) != 1 or from_hub):
        raise ConfigError(f"--as {as_name} says what one file is; name exactly one.")
    known = [(path, name) for path in given if (name := as_name or recognise_asset(path))]
    for path, name in known:
        weight_files.take_in(path, name, accept_licence, replace)
        given.remove(path)
    if known and not given and not from_hub:
        return
    from refbfr_core.weights import import_published, stable_diffusion_folder

    if from_hub:
        # Before the download, not after.
        if not _accepts(SD21_BASE, accept_licence):
            raise WeightsError(f"the licence ({SD21_BASE.licence}) was not accepted, so nothing was fetched.")
        agreed.append(SD21_BASE)
        given.append(stable_diffusion_folder(from_hub, download=True))
    if not given:
        raise ConfigError("nothing to import: name the files, or a repository with --from-hub.")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        done = import_published(
            given,
            accept=lambda published: published in agreed or _accepts(published, accept_licence),
            root=root,
            replace=replace,
            tell=lambda text: typer.echo(text, err=True),
        )
    for entry in caught:
        warn(str(entry.message))
    for one in done:
        typer.echo(f"{one.name}: {'imported into' if one.fresh else 'already in'} {one.folder}")
        for remark in one.remarks:
            typer.echo(f"    {remark}")


def _accepts(published: PublishedFile, accepted: bool) -> bool:
    """Show the licence of a published file; ask whether it is accepted where somebody can answer."""
    typer.echo(
        f"{published.filename} belongs to its authors: {published.page}\nLicence: {published.licence}.", err=True
    )
    if accepted:
        return True
    if sys.stdin.isatty():
        return typer.confirm("Do you accept it?", err=True)
    typer.echo("Run again with --accept-licence if you accept it.", err=True)
    return False


def _shipped(name: str) -> str:
    """Say in a few words whether the shipped weights of a network are there; `verify` looks at every byte."""
    from refbfr_core.errors import WeightsError
    from refbfr_core.weights import read_card, shipped_root

    try:
        record = read_card(shipped_root("toy") / name)
    except WeightsError:
        return "not there"
    return f"{record['parameters']:,} parameters, ships with the package"
