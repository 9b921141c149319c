"""Files of other people that the paper profile uses as they are: which, from whom, under which licence, and what for.

These files are named by their path where they are needed, and nothing is converted. What is known about each stands in
`refbfr_core.weights.assets`, together with all other public files; the files that are converted into networks of this
package stand in `refbfr_core.weights.registry` as well. Licences are those the owners' pages state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from refbfr_core.errors import unknown_name
from refbfr_core.weights.assets import ASSETS


@dataclass(frozen=True)
class PaperFile:
    """One file of other people.

    name : how it is called here. filename : how its owners call it. purpose : what it is and which method needs it.
    page : its owners' page. url : the file itself, or the page of a file store that hands it out. licence : what its
    owners allow, in a few words. use : what to do with it. sha256 : of the file, where it is known.
    """

    name: str
    filename: str
    purpose: str
    page: str
    url: str
    licence: str
    use: str
    sha256: str | None = None

    def how_to_get(self) -> str:
        """One sentence for messages: whose it is, where it is, and what to do with it."""
        return (
            f"{self.filename} does not come with this package. Its owners publish it at {self.page} (licence: "
            f"{self.licence}): download {self.url}, then {self.use}."
        )


def _paper_file(name: str) -> PaperFile:
    asset = ASSETS[name]
    return PaperFile(
        name, asset.filename, asset.purpose, asset.page, asset.link, asset.licence, asset.use, asset.sha256
    )


_NAMES = (
    *("codeformer", "difface-swinir", "gfpgan", "pgdiff-restorer"),
    *("insightface-buffalo_l", "insightface-antelopev2"),
)

PAPER_FILES: Mapping[str, PaperFile] = MappingProxyType({name: _paper_file(name) for name in _NAMES})
"""Every such file by name; read-only."""


def paper_file(name: str) -> PaperFile:
    """The file called `name`; raises `UnknownNameError` that names the nearest known one."""
    if name not in PAPER_FILES:
        raise unknown_name("paper file", name, PAPER_FILES)
    return PAPER_FILES[name]
