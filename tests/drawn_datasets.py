"""Miniature releases of reference datasets, made of drawn faces: whole ones, and ways to damage them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from refbfr_core.degradation import Degradation
from refbfr_core.faces import ToyFaces
from refbfr_core.images import write_image


@dataclass(frozen=True)
class MiniRelease:
    """Where a miniature dataset lies; `people` maps a split to the picture names of each of its people."""

    root: Path
    people: dict[str, list[list[str]]]

    def mapping(self, split: str) -> Path:
        """The CSV file of a split."""
        return self.root / f"reference_mapping/{split}_references.csv"

    def picture(self, name: str) -> Path:
        """The file of a photograph."""
        return self.root / "images1024x1024" / name


def draw_people(people: int, views: int, seed: int, split: str, size: int = 64) -> torch.Tensor:
    """(people, views, 3, size, size) drawn faces."""
    faces = ToyFaces(64)
    identities = faces.identities(people, seed=seed, split=split)
    images = faces.render(identities, faces.views(identities, views, seed=seed)).images
    if size == 64:
        return images
    flat = torch.nn.functional.interpolate(images.flatten(0, 1), size, mode="area")
    return flat.unflatten(0, (people, views))


def write_rows(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """A mapping CSV."""
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def change_rows(path: Path, change: Callable[[list[dict[str, str]]], None]) -> None:
    """Read a mapping, let ``change`` alter its rows, write it back."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    change(rows)
    write_rows(path, rows)


def everybody_refers_to_the_others(people: list[list[str]]) -> list[dict[str, str]]:
    """One row for each picture, whose references are the person's other pictures."""
    return [
        {"gt_image": name, "ref_image": str([other for other in names if other != name])}
        for names in people
        for name in names
    ]


def make_ffhq_ref(root: Path, people: tuple[int, int, int] = (4, 2, 2), views: int = 3, size: int = 64) -> MiniRelease:
    """An FFHQ-Ref with so many drawn people in train, val and test; some pictures in folders of a thousand."""
    names: dict[str, list[list[str]]] = {}
    number = 995  # so that names cross a thousand
    for split, count in zip(("train", "val", "test"), people, strict=True):
        images = draw_people(count, views, 3, split, size)
        names[split] = []
        for own in images:
            names[split].append([f"{number + view:05d}.png" for view in range(views)])
            for view, picture in enumerate(own):
                index = number + view
                folder = root / "images1024x1024" / ("" if index < 1000 else f"{index // 1000 * 1000:05d}")
                write_image(folder / f"{index:05d}.png", picture)
            number += views
        write_rows(root / f"reference_mapping/{split}_references.csv", everybody_refers_to_the_others(names[split]))
        listing = root / f"id_based_ffhq_split/{split}_image.txt"
        listing.parent.mkdir(exist_ok=True)
        listing.write_text("".join(f"{name}\n" for own in names[split] for name in own))
    for folder, preset in (("severe_degrad", "toy-refldm-severe"), ("moderate_degrad", "toy-refldm-moderate")):
        lq, _ = Degradation.preset(preset)(images.flatten(0, 1), seed=5)
        flat = [name for own in names["test"] for name in own]
        for name, picture in zip(flat, lq, strict=True):
            write_image(root / "test_images" / folder / name, picture)
    return MiniRelease(root, names)


def make_celeba_test_ref(root: Path, people: int = 2, views: int = 3) -> MiniRelease:
    """A CelebA-Test-Ref: the first picture of each drawn person is the target, the others are JPEG references."""
    images = draw_people(people, views, 4, "test")
    rows, names = [], []
    for person, own in enumerate(images):
        target = f"{person:08d}.png"
        references = [f"{100 * person + view}.jpg" for view in range(1, views)]
        write_image(root / "celeba_test_images/HQ" / target, own[0])
        lq, _ = Degradation.preset("toy-refldm-severe")(own[:1], seed=person)
        write_image(root / "celeba_test_images/LQ" / target, lq[0])
        for name, picture in zip(references, own[1:], strict=True):
            write_image(root / "CelebAMask-HQ/CelebA-HQ-img" / name, picture)
        rows.append({"gt_image": target, "lq_image": target, "ref_image": str(references)})
        names.append([target, *references])
    write_rows(root / "test_references.csv", rows)
    return MiniRelease(root, {"test": names})


def make_celebref(root: Path, sizes: tuple[int, ...] = (3, 2, 4), size: int = 64) -> MiniRelease:
    """A CelebRef-HQ: a folder for each drawn person, with so many pictures each, in the one folder of the archive."""
    images = draw_people(len(sizes), max(sizes), 6, "test", size)
    names: list[list[str]] = []
    for person, (own, count) in enumerate(zip(images, sizes, strict=True)):
        names.append([f"{11 * person:05d}/{view}.png" for view in range(count)])
        for name, picture in zip(names[-1], own, strict=False):
            write_image(root / "CelebHQRefForRelease" / name, picture)
    return MiniRelease(root, {"test": names})
