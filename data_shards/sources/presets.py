"""Data sets with known biases: how each was published, as data for one function.

A preset says where the fields of an image (class, bias attributes, split) stand: in tables, or in
its path. :func:`preset_listings` reads them by either.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

from data_shards.errors import UsageError
from data_shards.sources.archives import printable
from data_shards.sources.datasets import TRAIN
from data_shards.sources.labelled import (
    HoldOut,
    Images,
    Labelled,
    Row,
    labelled_listings,
    scan_images,
)
from data_shards.sources.listing import Listing
from data_shards.sources.tables import Table, read_table, read_words
from data_shards.sources.words import hint

_ANY: Final = "*"  # the words of every field that has none of its own


@dataclass(frozen=True)
class Preset:
    """A data set as its makers published it.

    ``home`` is where users get it, ``tree`` what they then have. ``target`` is the field of the
    class and ``attributes`` are those of the biases, unless the user chooses other fields.
    ``words`` are names for what the source writes, by field, in the order of the labels and ids;
    in those of ``*``, ``{}`` is the name of the field. ``expected`` are the published numbers of
    images by split, where their source is known.

    ``pattern`` matches the path of an image, with a named group for each field. A group
    ``variant`` tells versions apart that lie side by side. Without a pattern, ``tables`` are the
    names of tables without their endings. The column ``path`` has paths beside them; without it,
    the first columns have names of files in any folder.
    """

    name: str
    summary: str
    home: str
    tree: str
    target: str
    attributes: tuple[str, ...] = ()
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)
    pattern: str = ""
    tables: tuple[str, ...] = ()
    path: str = ""


_DECADES = {str(age): f"{age // 10 * 10}-{age // 10 * 10 + 9}" for age in range(117)}
_RELEASE = "github.com/kakaoenterprise/Learning-Debiased-Disentangled (Lee et al., NeurIPS 2021)"
_ALIGNED = {"align": "train", "conflict": "train", "valid": "selection", "test": "test"}
_VARIATIONS = (
    *("original", "mixed_same", "mixed_rand", "mixed_next"),
    *("only_fg", "no_fg", "only_bg_b", "only_bg_t"),
)


def _released(target: str, bias: str) -> str:
    """Return the pattern of a path in the release of Lee et al., whose names end in both fields."""
    return (
        r"(?:(?:.*/)?(?P<variant>[\d.]+pct)/|(?:.*/)?)(?P<split>align|conflict|valid|test)/"
        rf"(?:[^/]+/)?[^/]*_(?P<{target}>\d)_(?P<{bias}>\d)\.[a-z]+"
    )


PRESETS: Final = {
    preset.name: preset
    for preset in (
        Preset(
            name="waterbirds",
            summary="land and water birds on land and water backgrounds",
            home="nlp.stanford.edu/data/dro/waterbird_complete95_forest2water2.tar.gz "
            "(Sagawa et al., ICLR 2020)",
            tree="metadata.csv and 200 folders of birds with *.jpg",
            target="y",
            attributes=("place",),
            words={
                "y": {"0": "landbird", "1": "waterbird"},
                "place": {"0": "land", "1": "water"},
                "split": {"0": "train", "1": "selection", "2": "test"},
            },
            # The splits of CUB-200-2011 (5,994 and 5,794 images); generate_waterbirds.py of
            # github.com/kohpangwei/group_DRO takes a fifth of the first for validation.
            expected={"train": 4_795, "selection": 1_199, "test": 5_794},
            tables=("metadata",),
            path="img_filename",
        ),
        Preset(
            name="celeba",
            summary="faces; any of their 40 attributes is the class, any others are biases",
            home="mmlab.ie.cuhk.edu.hk/projects/CelebA.html (Liu et al., ICCV 2015)",
            tree="list_attr_celeba.txt, list_eval_partition.txt (or .csv) and *.jpg in any folder",
            target="Blond_Hair",
            attributes=("Male",),
            words={
                _ANY: {"-1": "not {}", "1": "{}"},
                "split": {"0": "train", "1": "selection", "2": "test"},
            },
            # Its page on Kaggle, kaggle.com/datasets/jessicali9530/celeba-dataset, has them.
            expected={"train": 162_770, "selection": 19_867, "test": 19_962},
            tables=("list_attr_celeba", "list_eval_partition"),
        ),
        Preset(
            name="urbancars",
            summary="urban and country cars; the background and an object beside them are biases",
            home="github.com/facebookresearch/Whac-A-Mole, whose scripts make the images "
            "(Li et al., CVPR 2023)",
            tree="bg-0.95_co_occur_obj-0.95/train and bg-0.5_co_occur_obj-0.5/{val,test}, in each "
            "obj-*_bg-*_co_occur_obj-*/*.jpg",
            target="obj",
            attributes=("bg", "co_occur_obj"),
            words={
                _ANY: {"urban": "urban", "country": "country"},
                "split": {"train": "train", "val": "selection", "test": "test"},
            },
            # The defaults of create_datasets/urbancars/gen_urbancars.py for each of two classes.
            expected={"train": 8_000, "selection": 1_000, "test": 1_000},
            pattern=r"(?:.*/)?(?:bg-0\.95_co_occur_obj-0\.95/(?=train/)"
            r"|bg-0\.5_co_occur_obj-0\.5/(?!train/))(?P<split>train|val|test)/"
            r"obj-(?P<obj>[a-z]+)_bg-(?P<bg>[a-z]+)_co_occur_obj-(?P<co_occur_obj>[a-z]+)/[^/]+\.jpg",
        ),
        Preset(
            name="bffhq",
            summary="faces; age is the class, gender the bias (numbers, as in the names)",
            home=_RELEASE,
            tree="0.5pct/{align,conflict}/*/*_AGE_GENDER.png, {valid,test}/*_AGE_GENDER.png",
            target="age",
            attributes=("gender",),
            words={"split": _ALIGNED},
            pattern=_released("age", "gender"),
        ),
        Preset(
            name="cifar10-c",
            summary="corrupted CIFAR-10; the kind of corruption is the bias (numbers)",
            home=_RELEASE + ", folder cifar10c",
            tree="{0.5pct,…,5pct}/{align,conflict,valid}/*/*_CLASS_CORRUPTION.png, test/*/*",
            target="object",
            attributes=("corruption",),
            words={"split": _ALIGNED},
            pattern=_released("object", "corruption"),
        ),
        Preset(
            name="colored-mnist",
            summary="coloured digits; the colour is the bias (numbers)",
            home=_RELEASE + ", folder cmnist",
            tree="{0.5pct,…,5pct}/{align,conflict,valid}/*/*_DIGIT_COLOUR.png, test/*/*",
            target="digit",
            attributes=("color",),
            words={"split": _ALIGNED},
            pattern=_released("digit", "color"),
        ),
        Preset(
            name="utkface",
            summary="faces; gender is the class, race and age (decades) are biases",
            home="susanqq.github.io/UTKFace (Zhang et al., CVPR 2017)",
            tree="AGE_GENDER_RACE_TIME.jpg.chip.jpg (or .jpg); no splits, so give --hold-out",
            target="gender",
            attributes=("race", "age"),
            words={
                "gender": {"0": "male", "1": "female"},
                "race": {"0": "White", "1": "Black", "2": "Asian", "3": "Indian", "4": "Others"},
                "age": _DECADES,
            },
            pattern=r"(?:.*/)?(?P<age>\d{1,3})_(?P<gender>\d)_(?P<race>\d)_\d+(?:\.[a-z]+)+",
        ),
        Preset(
            name="bar",
            summary="biased action recognition; the place is the bias and has no labels",
            home="github.com/alinlab/BAR (Nam et al., NeurIPS 2020)",
            tree="train/ACTION_NUMBER.jpg and test/ACTION_NUMBER.jpg",
            target="action",
            words={
                "action": {
                    **{name: name for name in ("climbing", "diving", "fishing", "racing")},
                    **{"throwing": "throwing", "pole vaulting": "vaulting", "vaulting": "vaulting"},
                },
                "split": {"train": "train", "test": "test"},
            },
            # The README of its repository has them.
            expected={"train": 1_941, "test": 654},
            pattern=r"(?:.*/)?(?P<split>train|test)/(?P<action>[a-z ]+)_\d+\.[A-Za-z]+",
        ),
        Preset(
            name="imagenet9-background",
            summary="Backgrounds Challenge: test sets in 9 classes with other backgrounds",
            home="github.com/MadryLab/backgrounds_challenge, the release "
            "backgrounds_challenge_data.tar.gz (Xiao et al., ICLR 2021)",
            tree="{original,mixed_same,mixed_rand,…}/val/{00_dog,…,08_fish}/*.JPEG",
            target="object",
            words={
                "object": {
                    **{"00_dog": "dog", "01_bird": "bird", "02_wheeled vehicle": "wheeled vehicle"},
                    **{"03_reptile": "reptile", "04_carnivore": "carnivore"},
                    **{"05_insect": "insect", "06_musical instrument": "musical instrument"},
                    **{"07_primate": "primate", "08_fish": "fish"},
                },
                "split": {name: name for name in _VARIATIONS},
            },
            pattern=rf"(?:.*/)?(?P<split>{'|'.join(_VARIATIONS)})/val/(?P<object>[^/]+)/[^/]+",
        ),
    )
}


def preset_listings(
    preset: Preset,
    source: Path,
    *,
    target: str | None = None,
    attributes: Sequence[str] | None = None,
    variant: str | None = None,
    hold_out: HoldOut | None = None,
    progress: bool = False,
) -> list[Listing]:
    """Return a listing of each split of a data set below ``source``.

    ``target`` and ``attributes`` are other fields than those of the preset; ``variant`` is one of
    the versions that lie side by side. Images that a table names and that are not there are left
    out and counted: parts of a data set are useful. UsageError if the source is not as it was
    published.
    """
    images = scan_images(source, None, progress=progress)
    label = target or preset.target
    biases = preset.attributes if attributes is None else tuple(attributes)
    read = _from_paths if preset.pattern else _from_tables
    found = read(preset, source, images, (label, *biases))
    versions = sorted({image.variant for image in found} - {""})
    if variant is None and len(versions) > 1:
        raise UsageError(f"--variant: {source} holds {', '.join(versions)}; choose one")
    if variant is not None and variant not in versions:
        known = ", ".join(versions) or "none"
        raise UsageError(f"--variant {variant}: {source} holds {known}{hint(variant, versions)}")
    rows = []
    for image in found:
        if variant is None or image.variant in ("", variant):
            words = [
                _word(preset, name, written, image.where)
                for name, written in zip((label, *biases), image.fields, strict=True)
            ]
            split = _word(preset, "split", image.split, image.where)
            rows.append(Row(image.where, image.path, words[0], split, tuple(words[1:])))
    data = Labelled(
        dataset=preset.name,
        rows=rows,
        attributes=biases,
        classes=_order(preset, label),
        values={name: _order(preset, name) for name in biases},
        expected=preset.expected,
        hold_out=hold_out,
    )
    first, *others = labelled_listings(data, images, skip_missing=True)
    rest = len(images.files.keys() - {image.path for image in found})
    told = [f"{rest:,} images do not belong to {preset.name}"] if rest else []
    return [
        replace(first, findings=images.findings, warnings=(*first.warnings, *told)),
        *others,
    ]


class _Image(NamedTuple):
    """An image with the wanted fields as they are written; "" where there is no variant.

    ``where`` is the line of its table or its path, for messages.
    """

    where: str
    path: str
    fields: tuple[str, ...]
    split: str = TRAIN
    variant: str = ""


def _check_fields(preset: Preset, wanted: Sequence[str], known: Sequence[str]) -> None:
    known = [name for name in known if name not in ("split", "variant", preset.path)]
    for name in wanted:
        if name not in known:
            option = "--target" if name == wanted[0] else "--attributes"
            raise UsageError(
                f"{option} {name}: {preset.name} has no such field{hint(name, known)}; it has "
                f"{', '.join(known)}"
            )
    if wanted[0] in wanted[1:]:
        raise UsageError(f"--attributes {wanted[0]}: is the target; name another field")


def _from_paths(
    preset: Preset, source: Path, images: Images, wanted: Sequence[str]
) -> list[_Image]:
    pattern = re.compile(preset.pattern)
    _check_fields(preset, wanted, list(pattern.groupindex))
    found = []
    for path in sorted(images.files):
        match = pattern.fullmatch(path)
        if match is not None:
            groups = match.groupdict(default="")
            found.append(
                _Image(
                    printable(f"{source}/{path}"),
                    path,
                    tuple(groups[name] for name in wanted),
                    groups.get("split", TRAIN),
                    groups.get("variant", ""),
                )
            )
    if not found:
        raise _differs(preset, source)
    return found


def _from_tables(
    preset: Preset, source: Path, images: Images, wanted: Sequence[str]
) -> list[_Image]:
    """Join the tables of a preset by image; the first column of each, or ``path``, names it."""
    tables = [_find_table(preset, source, name) for name in preset.tables]
    known: dict[str, tuple[Table, int]] = {}
    for table in tables:
        for place, name in enumerate(table.columns):
            if place != _image_column(preset, table):
                known["split" if name == "partition" else name] = (table, place)
    _check_fields(preset, wanted, list(known))
    if "split" not in known:
        raise _differs(preset, source, "no column says the split; ")
    columns = []
    for name in (*wanted, "split"):
        table, place = known[name]
        image = _image_column(preset, table)
        columns.append({row[image]: row[place] for row in table.cells})
    by_name: dict[str, str] = {}
    for path in images.files:
        name = path.rpartition("/")[2]
        if by_name.setdefault(name, path) != path and name in columns[0] and not preset.path:
            twice = " and ".join(sorted((path, by_name[name])))
            raise UsageError(f"{source}: holds {twice}; remove the folder that is not meant")
    first = tables[0]
    below = first.path.parent.relative_to(source)
    place = _image_column(preset, first)
    found = []
    for number, cells in enumerate(first.cells):
        name, where = cells[place], first.place(number)
        if any(name not in column for column in columns):
            raise UsageError(f"{where}: {name!r} is not in all of {', '.join(preset.tables)}")
        path = (below / name).as_posix() if preset.path else by_name.get(name, name)
        *fields, split = (column[name] for column in columns)
        found.append(_Image(where, path, tuple(fields), split))
    return found


def _image_column(preset: Preset, table: Table) -> int:
    return table.columns.index(preset.path) if preset.path in table.columns else 0


def _find_table(preset: Preset, source: Path, name: str) -> Table:
    for pattern in (f"{name}.*", f"*/{name}.*"):
        for path in sorted(source.glob(pattern)):
            if path.suffix == ".txt":
                return read_words(path, ("image_id", "partition"))
            if path.suffix in (".csv", ".parquet"):
                return read_table(path)
    raise _differs(preset, source, f"{name} is missing; ")


def _differs(preset: Preset, source: Path, problem: str = "") -> UsageError:
    return UsageError(
        f"{source}: does not look like {preset.name}: {problem}expected {preset.tree}, from "
        f"{preset.home}"
    )


def _word(preset: Preset, field: str, written: str, where: str) -> str:
    words = _words(preset, field)
    if not words:
        return written
    if written.strip() not in words:
        raise UsageError(
            f"{where}: {field} is {written!r}, but {preset.name} has "
            f"{', '.join(words)}{hint(written, [*words])}"
        )
    return words[written.strip()]


def _order(preset: Preset, field: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_words(preset, field).values()))


def _words(preset: Preset, field: str) -> dict[str, str]:
    words = preset.words.get(field, preset.words.get(_ANY, {}))
    return {written: word.format(field) for written, word in words.items()}
