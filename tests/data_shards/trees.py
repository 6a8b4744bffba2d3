"""Small data sets in the layouts of ImageNet and its kin, with real wnids and tiny images."""

import csv
import io
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from data_shards.classes import shipped_class_map

# wnid -> name of the file -> its bytes
Images = Mapping[str, Mapping[str, bytes]]

# Five of the 42 synsets of 9-class ImageNet (a dog, a cat, a frog, a bird, a bee), then two others.
NINE = ("n02085620", "n02123045", "n01641577", "n01819313", "n02206856")
OTHERS = ("n01440764", "n15075141")
WNIDS = (*NINE, *OTHERS)
# Three of the 200 synsets of ImageNet-A; the first two are in 9-class ImageNet.
ADVERSARIAL = ("n01641577", "n02206856", "n01498041")


@cache
def jpeg(seed: int, size: tuple[int, int] = (24, 18)) -> bytes:
    """A JPEG of a few hundred bytes that no other seed gives."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).resize(size).save(stream, "JPEG", quality=60)
    return stream.getvalue()


def train_images(wnids: Sequence[str] = WNIDS, each: int = 10) -> dict[str, dict[str, bytes]]:
    """Training images named as in ILSVRC2012: n01440764_18.JPEG."""
    return {
        wnid: {f"{wnid}_{7 * i + 1}.JPEG": jpeg(1000 * c + i) for i in range(each)}
        for c, wnid in enumerate(wnids)
    }


def val_images(wnids: Sequence[str] = WNIDS, each: int = 3) -> dict[str, dict[str, bytes]]:
    """Validation images, numbered through all classes in turn."""
    images: dict[str, dict[str, bytes]] = {wnid: {} for wnid in wnids}
    for i in range(each * len(wnids)):
        images[wnids[i % len(wnids)]][f"ILSVRC2012_val_{i + 1:08d}.JPEG"] = jpeg(50_000 + i)
    return images


def adversarial_images(wnids: Sequence[str] = ADVERSARIAL) -> dict[str, dict[str, bytes]]:
    """Images named as in ImageNet-A, with blanks and dots in their names."""
    return {
        wnid: {
            f"0.{i:06d}_digital clock _ digital clock_0.86{c}66{i}.jpg": jpeg(90_000 + 10 * c + i)
            for i in range(4)
        }
        for c, wnid in enumerate(wnids)
    }


def write_folder(root: Path, images: Images) -> Path:
    """Class folders."""
    for wnid, files in images.items():
        (root / wnid).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (root / wnid / name).write_bytes(content)
    return root


def write_tar(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    """A plain tar, with an entry for each folder as GNU tar writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_tar(files))
    return path


def _tar(files: Sequence[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    folders: set[str] = set()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files:
            folder = name.rpartition("/")[0]
            if folder and folder not in folders:
                folders.add(folder)
                info = tarfile.TarInfo(folder)
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def flat(images: Images) -> list[tuple[str, bytes]]:
    """All files by name, without their class."""
    return sorted((name, c) for files in images.values() for name, c in files.items())


def write_train_tar(path: Path, images: Images) -> Path:
    """ILSVRC2012_img_train.tar: a tar a class."""
    return write_tar(
        path, [(f"{wnid}.tar", _tar(sorted(files.items()))) for wnid, files in images.items()]
    )


def write_val_tar(path: Path, images: Images) -> Path:
    """ILSVRC2012_img_val.tar: all images side by side."""
    return write_tar(path, flat(images))


def write_devkit(path: Path, images: Images) -> Path:
    """ILSVRC2012_devkit_t12.tar.gz, whose class numbers do not follow the wnids' order."""
    wnids = list(shipped_class_map("imagenet1k").classes)
    shuffled = [wnids[i] for i in np.random.default_rng(1).permutation(len(wnids))]
    # The real file has 1,860 synsets; those above the 1,000 have children.
    rows = [(i + 1, wnid, "words, and more", "gloss", 0) for i, wnid in enumerate(shuffled)]
    rows += [(1001 + i, f"n0000{i:04d}", "a group", "gloss", 2) for i in range(5)]
    kinds = [(n, object) for n in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    stream = io.BytesIO()
    savemat(stream, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)}, do_compression=True)
    class_of = {name: wnid for wnid, files in images.items() for name in files}
    numbers = "".join(f"{shuffled.index(class_of[name]) + 1}\n" for name in sorted(class_of))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in (
            ("readme.txt", b"hello"),
            ("data/meta.mat", stream.getvalue()),
            ("data/ILSVRC2012_validation_ground_truth.txt", numbers.encode()),
        ):
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_kaggle(root: Path, train: Images, val: Images) -> Path:
    """Kaggle's layout, its solution file and the folders that hold no labelled images."""
    base = root / "ILSVRC" / "Data" / "CLS-LOC"
    write_folder(base / "train", train)
    for folder, files in (("val", flat(val)), ("test", [("ILSVRC2012_test_00000001.JPEG", b"?")])):
        (base / folder).mkdir()
        for name, content in files:
            (base / folder / name).write_bytes(content)
    (root / "ILSVRC" / "Annotations" / "CLS-LOC" / "val").mkdir(parents=True)
    (root / "ILSVRC" / "Annotations" / "CLS-LOC" / "val" / "a.xml").write_text("<a/>")
    with (root / "LOC_val_solution.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["ImageId", "PredictionString"])
        for wnid, images in val.items():
            for name in images:
                table.writerow([name.removesuffix(".JPEG"), f"{wnid} 1 2 3 4 {wnid} 5 6 7 8 "])
    return root


def nested(images: Images, *above: str) -> list[tuple[str, bytes]]:
    """Files of class folders inside the folders ``above``."""
    return [
        ("/".join((*above, wnid, name)), content)
        for wnid, files in images.items()
        for name, content in files.items()
    ]
