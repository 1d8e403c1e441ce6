"""Divides photographs with masks into train, choice and test, and writes what recipes and reports read.

    python -m experiments.photographs.data --output runs/photographs/seed-0/data --seed 0

The folder `data` (else $SCA_SHARED/data) holds coco_permissive, coco_permissive_2 and taco_litter. In the output
SET.SIDE.json is a COCO file of each set and side, its pictures in data/SET/images: `train` to learn from, `choice` to
choose steps, models and thresholds by, `test` for reports alone. choice.json has that side of all sets, with pictures
in data, for recipes to evaluate on. coco_permissive.train_described.json has longer captions in place of names, where
they were written. split.json says where each picture went, and why; CREDITS.md and credits.json say who made the
pictures that are trained on, and under which license. With --small-sets there are two files besides of each of cards,
signs, cells and fruit (see small_sets.py).

The rule. Pictures go by themselves or in groups, of which each is named by its first file name:

- the same bytes, or difference hashes of 64 bits that differ in at most 8: the same picture, in whatever set;
- consecutive numbers of one batch of TACO that show a category in common: mostly the same thing once more.

Groups stand in the order of SHA-256 of "SEED NAME"; of each set the first go to test until it has 15 % of the
pictures, the next to choice for 10 %, the others to train. Two kinds of pictures are never trained on, and counted by
themselves: CC BY-SA (license 5) ones, whose license would ask the same of what is made of them (60 % to test, the
others to choice), and those that are also in data/photos, which are shown as examples (all to test). A group with one
of them goes with it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sca_hf.files import hash_file, read_json, to_json, write_whole

from .small_sets import write_small_sets
from .words import caption_of, plain_name


SETS = ("coco_permissive", "coco_permissive_2", "taco_litter")
SIDES = ("train", "choice", "test")
SHOWN = "photos"
_SHARE_ALIKE, _EXAMPLE, _DRAWN = "CC BY-SA 2.0", "shown as an example", "drawn"
# Why a picture is where it is -> the fractions of those pictures in test and in choice.
_FRACTIONS = {_EXAMPLE: (1.0, 0.0), _SHARE_ALIKE: (0.6, 0.4), _DRAWN: (0.15, 0.1)}
_SAME_BITS = 8
LICENSES = {
    "coco": {
        4: ("CC BY 2.0", "https://creativecommons.org/licenses/by/2.0/"),
        5: (_SHARE_ALIKE, "https://creativecommons.org/licenses/by-sa/2.0/"),
        7: ("no known copyright restrictions", "https://www.flickr.com/commons/usage/"),
        8: ("United States government work", "https://www.usa.gov/government-works"),
    },
    "taco": {1: ("CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/")},
}
_TACO_AUTHORS = "Pedro F. Proença and Pedro Simões (TACO)"
_TACO_NUMBER = re.compile(r"(batch_\d+)_(\d+)\.")


@dataclass
class Picture:
    """A picture of a set.

    Attributes:
        row: of `images` in its file.
        annotations: its rows of `annotations`.
        unit: the first name of its group.
        side: of `SIDES`, and `why` it is there.
    """

    of: str
    path: Path
    row: Mapping[str, Any]
    annotations: list[dict[str, Any]] = field(default_factory=list)
    unit: str = ""
    side: str = ""
    why: str = ""

    @property
    def name(self) -> str:
        """The file's name with its set's, since names of two sets may be the same."""
        return f"{self.of}/{self.path.name}"

    @property
    def license(self) -> tuple[str, str]:
        """Name and address of its license."""
        known = LICENSES["taco" if self.of.startswith("taco") else "coco"]
        if self.row["license"] not in known:
            raise ValueError(
                f"{self.name} has the license {self.row['license']!r}, which is not one of {list(known)}."
            )
        return known[self.row["license"]]


def data_folder(given: Path | None = None) -> Path:
    """Returns the folder of the sets: the one given, else `data`, else that of $SCA_SHARED."""
    shared = os.environ.get("SCA_SHARED")
    places = [given] if given else [Path("data"), *([Path(shared) / "data"] if shared else [])]
    for place in places:
        if (place / SETS[0]).is_dir():
            return place
    raise FileNotFoundError(
        f"{' and '.join(map(str, places))} has no {SETS[0]}: name the folder of the sets by --data."
    )


def divided(folder: Path, seed: int) -> list[Picture]:
    """Returns all pictures of the sets with their sides, by the rule that this file's head tells."""
    pictures = [picture for name in SETS for picture in _read(folder / name)]
    shown = {hash_file(path) for path in sorted((folder / SHOWN).glob("*.jpg"))}
    pools: dict[tuple[str, str], list[tuple[bytes, str, list[Picture]]]] = defaultdict(list)
    for unit, group in _units(pictures).items():
        why = _DRAWN
        if any(hash_file(picture.path) in shown for picture in group):
            why = _EXAMPLE
        elif any(picture.license[0] == _SHARE_ALIKE for picture in group):
            why = _SHARE_ALIKE
        order = hashlib.sha256(f"{seed} {unit}".encode()).digest()
        pools[group[0].of, why].append((order, unit, group))
    for (_, why), pool in pools.items():
        total, done = sum(len(group) for *_, group in pool), 0
        test, choice = _FRACTIONS[why]
        for _, unit, group in sorted(pool, key=lambda entry: entry[:2]):
            # By the middle of a group: one that is half over the limit is beyond it.
            place = (done + len(group) / 2) / total
            side = "test" if place <= test else "choice" if place <= test + choice else "train"
            done += len(group)
            for picture in group:
                picture.unit, picture.side, picture.why = unit, side, why
    return pictures


def _read(folder: Path) -> list[Picture]:
    content = read_json(folder / "instances.json", dict)
    names = {row["id"]: plain_name(row["name"]) for row in content["categories"]}
    pictures = {
        row["id"]: Picture(folder.name, folder / "images" / row["file_name"], row) for row in content["images"]
    }
    for row in content["annotations"]:
        name = names[row["category_id"]]
        pictures[row["image_id"]].annotations.append({**row, "category": name, "captions": [caption_of(name)]})
    return list(pictures.values())


def _units(pictures: Sequence[Picture]) -> dict[str, list[Picture]]:
    """The groups of pictures that must not be divided, by the first name of each."""
    above = list(range(len(pictures)))

    def top(place: int) -> int:
        while above[place] != place:
            place = above[place]
        return place

    for one, other in _links(pictures):
        above[top(one)] = top(other)
    groups: dict[int, list[Picture]] = defaultdict(list)
    for place, picture in enumerate(pictures):
        groups[top(place)].append(picture)
    # By the file's name alone: which set a picture lies in says nothing about it.
    return {min(picture.path.name for picture in group): group for group in groups.values()}


def _links(pictures: Sequence[Picture]) -> Iterable[tuple[int, int]]:
    first: dict[str, int] = {}
    hashes = np.stack([difference_hash(picture.path) for picture in pictures])
    numbers: dict[tuple[str, int], int] = {}
    for place, picture in enumerate(pictures):
        for key in (hash_file(picture.path), picture.path.name):
            yield place, first.setdefault(key, place)
        for other in np.flatnonzero((hashes[:place] != hashes[place]).sum(1) <= _SAME_BITS):
            yield place, int(other)
        if found := _TACO_NUMBER.match(picture.path.name):
            numbers[found[1], int(found[2])] = place
    for (batch, number), place in numbers.items():
        following = numbers.get((batch, number + 1))
        if following is not None and _categories(pictures[place]) & _categories(pictures[following]):
            yield place, following


def _categories(picture: Picture) -> set[str]:
    return {row["category"] for row in picture.annotations}


def difference_hash(path: Path) -> np.ndarray:
    """Returns 64 bits that stay nearly the same where a picture is resized or saved again."""
    with Image.open(path) as image:
        gray = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), np.int16)
    return (gray[:, 1:] > gray[:, :-1]).ravel()


def coco_file(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Returns the pictures as COCO's JSON; annotations are as they came, with plain names and captions."""
    names = sorted({row["category"] for picture in pictures for row in picture.annotations})
    numbers = {name: number for number, name in enumerate(names, 1)}
    rows = [
        {**{key: value for key, value in row.items() if key != "category"}, "category_id": numbers[row["category"]]}
        for picture in pictures
        for row in picture.annotations
    ]
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": [dict(picture.row) for picture in pictures], "annotations": rows, "categories": categories}


def _numbered(pictures: Sequence[Picture]) -> list[Picture]:
    """Pictures of several sets as one: ids of their own, and file names with the folders of their sets."""
    found, count = [], 0
    for number, one in enumerate(pictures, 1):
        row = {**one.row, "id": number, "file_name": f"{one.of}/images/{one.row['file_name']}"}
        ids = range(count + 1, count + 1 + len(one.annotations))
        rows = [{**region, "id": id_, "image_id": number} for id_, region in zip(ids, one.annotations, strict=True)]
        found.append(Picture(one.of, one.path, row, rows))
        count += len(rows)
    return found


def described(pictures: Sequence[Picture], folder: Path) -> list[Picture]:
    """Returns those pictures of coco_permissive that have longer captions, with the regions that have them."""
    content = read_json(folder / SETS[0] / "region_descriptions.json", list)
    phrases: dict[int, list[str]] = defaultdict(list)
    for image in content:
        for region in image["regions"]:
            phrases[region["coco_ann_id"]].append(region["phrase"])
    found = []
    for picture in pictures:
        rows = [{**row, "captions": phrases[row["id"]]} for row in picture.annotations if row["id"] in phrases]
        if picture.of == SETS[0] and rows:
            found.append(Picture(picture.of, picture.path, picture.row, rows))
    return found


def credit(picture: Picture) -> dict[str, str]:
    """Returns what a license asks to be said of a picture; the names of COCO's photographers are behind `page`."""
    url = picture.row["flickr_url"]
    number = Path(url).name.split("_")[0]
    author = _TACO_AUTHORS if picture.of.startswith("taco") else f"Flickr photo {number}"
    license_name, address = picture.license
    row = {"picture": picture.name, "author": author, "page": f"https://www.flickr.com/photo.gne?id={number}"}
    return {**row, "file": url, "license": license_name, "license_url": address}


def credits_page(pictures: Sequence[Picture]) -> str:
    """Returns the list that a model's card refers to."""
    rows = [credit(picture) for picture in pictures]
    lines = [
        "# Pictures that were trained on",
        "",
        "Annotations of coco_permissive and coco_permissive_2: COCO Consortium, CC BY 4.0. Longer captions of "
        "coco_permissive: written for this project. Photographs and annotations of taco_litter: "
        f"{_TACO_AUTHORS}, CC BY 4.0, reduced to 640 pixels. COCO names its photographers by the numbers of their "
        f"photographs at Flickr. Photographs under {_SHARE_ALIKE} were measured with, never trained on.",
        "",
        "| picture | by | license |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {r['picture']} | [{r['author']}]({r['page']}) | [{r['license']}]({r['license_url']}) |" for r in rows
    ]
    return "\n".join(lines) + "\n"


def write(pictures: Sequence[Picture], output: Path, folder: Path, seed: int) -> None:
    """Writes the files of this file's head."""
    output.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        for side in SIDES:
            part = [picture for picture in pictures if (picture.of, picture.side) == (name, side)]
            write_whole(output / f"{name}.{side}.json", to_json(coco_file(part), None))
    chosen = [picture for picture in pictures if picture.side == "choice"]
    write_whole(output / "choice.json", to_json(coco_file(_numbered(chosen)), None))
    trained = [picture for picture in pictures if picture.side == "train"]
    write_whole(output / f"{SETS[0]}.train_described.json", to_json(coco_file(described(trained, folder)), None))
    split = {p.name: {"side": p.side, "why": p.why, "group": p.unit} for p in pictures}
    write_whole(output / "split.json", to_json({"seed": seed, "rule": __doc__, "pictures": split}))
    write_whole(output / "credits.json", to_json([credit(picture) for picture in trained]))
    write_whole(output / "CREDITS.md", credits_page(trained))


def summary(pictures: Sequence[Picture]) -> str:
    """Returns how many pictures and masks each set has on each side, as a table."""
    counts: Counter[tuple[str, str]] = Counter()
    masks: Counter[tuple[str, str]] = Counter()
    for picture in pictures:
        counts[picture.of, picture.side] += 1
        masks[picture.of, picture.side] += sum(not row["iscrowd"] for row in picture.annotations)
    lines = [f"| set | {' | '.join(f'{side}, pictures / masks' for side in SIDES)} |", "| --- " * 4 + "|"]
    for name in SETS:
        lines.append(f"| {name} | {' | '.join(f'{counts[name, s]} / {masks[name, s]}' for s in SIDES)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the files of one seed")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another split (%(default)s)")
    parser.add_argument("--data", type=Path, help="folder of the sets (default: data, else $SCA_SHARED/data)")
    parser.add_argument("--small-sets", action="store_true", help="also divide what sca-tiny knows beside drawings")
    options = parser.parse_args(arguments)
    folder = data_folder(options.data)
    pictures = divided(folder, options.seed)
    write(pictures, options.output, folder, options.seed)
    print(summary(pictures))
    if options.small_sets:
        for name, (train, test) in write_small_sets(options.output, folder).items():
            print(f"{name}: {train} pictures to train on, {test} to test with")


if __name__ == "__main__":
    main()
