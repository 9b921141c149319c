"""What is known about one public file: its owners, where it is, its size and digest, and on which terms it may be used.

Plain frozen records; nothing is fetched here. A size or a SHA-256 stands in a record only if the owners state it (also
as the first digits in the file's name) or if independent public records of the same file agree on it. Without one, the
digest of the file that comes first is written down and every later look is compared with that.
"""

from __future__ import annotations

from dataclasses import dataclass

from refbfr_core.errors import ConfigError

FREE, RESTRICTED, NON_COMMERCIAL, NOT_STATED = "free", "restricted", "non-commercial", "not stated"
TERMS: tuple[str, ...] = (FREE, RESTRICTED, NON_COMMERCIAL, NOT_STATED)
"""What a licence means for whoever fetches the file; all but the first have to be accepted."""

S_LAB = "S-Lab License 1.0, non-commercial use only"
CC_BY_NC_SA = "CC BY-NC-SA 4.0, non-commercial"
APACHE_EXCEPTIONS = "Apache-2.0 with listed exceptions"


@dataclass(frozen=True)
class Asset:
    """One public file, or one repository of files.

    Attributes
    ----------
    name : how it is called here. filename : how its owners call it, "" where they give no name.
    purpose : what it is and which system or metric needs it.
    page : its owners' page. licence : what they allow, in a few words. terms : one of `TERMS`.
    url : the file itself; None where only a person can get it. store : then the page that hands it out to a person.
    torchvision : name of the model whose first ImageNet weights this is: torchvision itself knows their address.
    repository : "owner/name" of a repository of the Hugging Face hub that is wanted as a whole folder.
    patterns : which of its files are wanted; all when empty.
    size : bytes, or None. sha256 : 64 hex digits, or None. sha256_prefix : the digits that its owners put in its name.
    library : where a library keeps its own copy: "torch-hub/..." or "facexlib/...", with / between the parts.
    converted : whether `refbfr weights import` makes networks of it, instead of keeping it as it is.
    use : what to do with it, as a command. note : what to know before using it.
    """

    name: str
    filename: str
    purpose: str
    page: str
    licence: str
    terms: str
    url: str | None = None
    store: str = ""
    torchvision: str = ""
    repository: str = ""
    patterns: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None
    sha256_prefix: str = ""
    library: str = ""
    converted: bool = False
    use: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.terms not in TERMS:
            raise ConfigError(f"{self.name}: terms {self.terms!r} are none of {', '.join(TERMS)}.")

    @property
    def non_commercial(self) -> bool:
        """Whether its owners, or those of its training data, allow non-commercial use only."""
        return self.terms == NON_COMMERCIAL

    @property
    def needs_acceptance(self) -> bool:
        """Whether it is fetched only for somebody who says that its terms are accepted."""
        return self.terms != FREE

    @property
    def by_hand(self) -> bool:
        """Whether no program can fetch it: its owners hand it out on a page of a file store."""
        return self.url is None and not self.repository and not self.torchvision

    @property
    def link(self) -> str:
        """Where to click: the file, the repository, the file store's page, or its owners' page."""
        return self.url or hub_page(self.repository) or self.store or self.page

    @property
    def title(self) -> str:
        """The file's name, or a word for what has none."""
        return self.filename or self.repository or f"the file of {self.name}"

    def address(self) -> str | None:
        """Where a program gets the file; None where it cannot. It may import torchvision."""
        if not self.torchvision:
            return self.url
        from torchvision.models import get_model_weights

        return get_model_weights(self.torchvision).IMAGENET1K_V1.url

    def how_to_get(self) -> str:
        """Sentences for messages: whose it is, on which terms, and the command that gets it."""
        whose = f"{self.title} belongs to its authors: {self.page} (licence: {self.licence})."
        if self.by_hand:
            return f"{whose} {self.how_by_hand()}"
        return f"{whose} Get it with: refbfr weights get {self.name}"

    def how_by_hand(self) -> str:
        """What a person does who downloads it in a browser."""
        known_by = "" if self.filename else f" --as {self.name}"
        file = self.filename or "FILE"
        return f"Download it from {self.link}, then run: refbfr weights import {file}{known_by}"


def github(repository: str, tag: str, filename: str) -> dict[str, str]:
    """Page and address of a file of a GitHub release, as arguments of `Asset`."""
    releases = f"https://github.com/{repository}/releases"
    return {"filename": filename, "page": f"{releases}/tag/{tag}", "url": f"{releases}/download/{tag}/{filename}"}


def hub_file(repository: str, filename: str, revision: str = "main") -> dict[str, str]:
    """Page and address of a file on the Hugging Face hub, as arguments of `Asset`; `revision` is a commit if known."""
    page = hub_page(repository)
    return {"filename": filename, "page": page, "url": f"{page}/resolve/{revision}/{filename}"}


def hub_page(repository: str) -> str:
    """The page of a repository of the Hugging Face hub; "" for ""."""
    return f"https://huggingface.co/{repository}" if repository else ""


def drive_file(identifier: str) -> str:
    """The page of a file on Google Drive, which hands out large files to people only."""
    return f"https://drive.google.com/file/d/{identifier}/view"


def drive_folder(identifier: str) -> str:
    """The page of a folder on Google Drive."""
    return f"https://drive.google.com/drive/folders/{identifier}"
