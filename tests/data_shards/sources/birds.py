"""A small data set like Waterbirds: land and water birds, each mostly at its place."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.data_shards.trees import jpeg

HEADER = ("path", "label", "place", "sex", "split")
BIRDS = ("landbird", "waterbird")
PLACES = ("land", "water")
SEXES = ("f", "m", "")


def rows(count: int = 48) -> list[tuple[str, ...]]:
    """Rows of the table; every fourth bird is at the other place, in every split."""
    found = []
    for n in range(count):
        bird = n % 2
        place = bird if n % 8 > 1 else 1 - bird
        split = ("train", "train", "selection", "test")[n // 8 % 4]
        path = f"images/{BIRDS[bird]}s/{n:03d}.jpg"
        found.append((path, BIRDS[bird], PLACES[place], SEXES[n // 3 % 3], split))
    return found


def write_images(root: Path, paths: Sequence[str]) -> None:
    """Write an image for each path; each has other pixels."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(jpeg(number))


def write_table(path: Path, table: Sequence[Sequence[str]], **dialect: object) -> Path:
    """Write a CSV, with the dialect of the csv module."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **{"lineterminator": "\n", **dialect}).writerows(table)
    return path


def write_birds(root: Path, changed: Mapping[int, Sequence[str]] = {}) -> Path:
    """Write images and ``birds.csv`` below ``root``; rows by number may be replaced."""
    table = rows()
    write_images(root, [row[0] for row in table])
    for number, row in changed.items():
        table[number] = tuple(row)
    return write_table(root / "birds.csv", [HEADER, *table])
