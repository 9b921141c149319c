"""Where networks lie on this machine, and what to do for one that does not."""

from __future__ import annotations

import os
from pathlib import Path

from refbfr_core.weights.registry import NETWORKS, NetworkEntry, check_profile, network_entry
from refbfr_core.weights.sources import PublishedFile


def shipped_root(profile: str = "toy") -> Path:
    """The folder inside the package that holds the shipped networks of `profile`."""
    return Path(__file__).parent / check_profile(profile)


def published_root(profile: str = "paper") -> Path:
    """The folder with the networks made of the authors' files: `$REFBFR_WEIGHTS/<profile>`.

    Without that variable it lies in the user's cache folder (`~/.cache/refbfr/weights/<profile>` on Linux).
    """
    return weights_root() / check_profile(profile)


def weights_root() -> Path:
    """The folder of everything that came from other people: `$REFBFR_WEIGHTS`, or one in the user's cache folder."""
    place = os.environ.get("REFBFR_WEIGHTS")
    if place:
        return Path(place).expanduser()
    import pooch

    return Path(pooch.os_cache("refbfr")) / "weights"


def network_folder(name: str, profile: str = "toy", root: str | Path | None = None) -> Path:
    """Where `load_network` looks for a network: in `root`, else where the profile has it; it need not be there.

    Raises `UnknownNameError` for a name or profile.
    """
    entry = network_entry(name)
    check_profile(profile)
    if root is not None:
        return Path(root) / name
    if profile in entry.published or profile != "toy" and entry.unpublished:
        return published_root(profile) / name
    return shipped_root("toy") / name


def how_to_get(entry: NetworkEntry, profile: str) -> str:
    """What to download for a network of `profile`, from where, under which licence, and what to do with it.

    For a network that nobody has released: where one's own belongs.
    """
    if profile not in entry.published:
        return (
            f"the {profile} profile of {entry.name!r} has nothing to load: {entry.unpublished}. Train it (refbfr train "
            f"{entry.recipe} is the recipe of the small one), save it with save_network(..., {entry.name!r}, folder), "
            f"and pass root=folder or move it into {published_root(profile)}. The toy profile works without: "
            'profile="toy".'
        )
    published = entry.published[profile]
    files = dict.fromkeys(
        other.published[profile].filename
        for other in NETWORKS.values()
        if profile in other.published and other.published[profile].page == published.page
    )
    return (
        f"the {profile} profile of {entry.name!r} needs {published.filename}, which does not come with this package. "
        f"Its owners publish it at {published.page} (licence: {published.licence}): download {published.url}, then "
        f"run: refbfr weights import {' '.join(files)}. {_choices(entry, published)}The toy profile works without: "
        'profile="toy".'
    )


def _choices(entry: NetworkEntry, published: PublishedFile) -> str:
    """The note on a file and the files that do as well, as sentences; "" without."""
    note = f"Note: {published.note}. " if published.note else ""
    others = [f"{other.filename} from {other.page} (licence: {other.licence}; {other.note})" for other in entry.also]
    return note + (f"{' or '.join(others)} does as well. " if others else "")
