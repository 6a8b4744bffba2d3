"""Read the class of each validation image of ILSVRC2012 that is in no class folder.

Three kinds of files have it: the devkit (``ILSVRC2012_devkit_t12.tar.gz`` or the folder in it),
Kaggle's ``LOC_val_solution.csv``, and a CSV with the columns ``name`` and ``wnid``, whose names are
those of files or paths below the source.
"""

import csv
import io
import re
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from data_shards.errors import DataShardsError, UsageError
from data_shards.sources.archives import printable

DEVKIT: Final = "ILSVRC2012_devkit_t12"
KAGGLE: Final = "LOC_val_solution.csv"

_NUMBERS: Final = "ILSVRC2012_validation_ground_truth.txt"
_META: Final = "meta.mat"
_LARGEST: Final = 16 << 20  # bytes; Kaggle's table has 3 MB
_LARGEST_IN_DEVKIT: Final = 4 << 20  # bytes; the real ones are far smaller
_WNID: Final = re.compile(r"n\d{8}")


def find_labels(folder: Path) -> Path | None:
    """Return the first label file in ``folder`` that has its published name."""
    for name in (f"{DEVKIT}.tar.gz", DEVKIT, KAGGLE):
        if (folder / name).exists():
            return folder / name
    return None


@dataclass
class Labels:
    """The wnid of each image by its name or path without extension.

    ``is_table``: they come from a CSV with the columns name and wnid. ``used`` are the names that
    :meth:`find` has found.
    """

    path: Path
    wnids: dict[str, str]
    is_table: bool = False
    used: set[str] = field(default_factory=set)

    def find(self, source: Path, parts: tuple[str, ...], stem: str) -> str | None:
        """Return the wnid of the image ``stem`` in the folder ``parts`` of ``source``."""
        path = "/".join((*parts, stem))
        for name in (path, f"{source.name}/{path}", stem):
            if name in self.wnids:
                self.used.add(name)
                return self.wnids[name]
        return None


def load_labels(path: Path) -> Labels:
    """Read a file of labels.

    UsageError or DataShardsError in one line if the file is missing, of another kind or
    malformed.
    """
    if path.is_dir():
        return Labels(path, _from_devkit(path, _devkit_folder(path)))
    if not path.is_file():
        raise UsageError(f"{path}: no such file of labels")
    if path.name.lower().endswith((".tar.gz", ".tgz", ".tar")):
        return Labels(path, _from_devkit(path, _devkit_archive(path)))
    return _from_table(path)


def _from_table(path: Path) -> Labels:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except OSError as error:
        raise DataShardsError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataShardsError(f"{path}: is not a table of labels ({error})") from None
    if len(content) > _LARGEST:
        raise DataShardsError(f"{path}: is larger than a table of labels can be")
    header = rows[0] if rows else []
    own = ["name", "wnid"]
    if header not in (["ImageId", "PredictionString"], own):
        raise UsageError(
            f"{path}: is not a file of labels; give the devkit {DEVKIT}.tar.gz, Kaggle's {KAGGLE} "
            "or a CSV with the columns name,wnid"
        )
    labels: dict[str, str] = {}
    for line, row in enumerate(rows[1:], 2):
        if not row:
            continue
        # Kaggle's second column also has the boxes: "n01978287 85 1 499 272".
        wnid = row[1].split(" ", 1)[0] if len(row) == 2 else ""
        name = row[0]
        if name.lower().endswith((".jpeg", ".jpg", ".png")):
            name = name.rpartition(".")[0]
        name = name.removeprefix("./")
        if not wnid or not name or labels.get(name, wnid) != wnid:
            problem = "two labels for one image" if wnid and name else "no image and wnid"
            raise DataShardsError(f"{path}:{line}: {problem} ({printable(','.join(row))[:60]})")
        labels[name] = wnid
    return Labels(path, labels, is_table=header == own)


def _devkit_folder(path: Path) -> dict[str, bytes]:
    found = {}
    for name in (_NUMBERS, _META):
        file = path / "data" / name
        try:
            if file.is_file() and file.stat().st_size <= _LARGEST_IN_DEVKIT:
                found[name] = file.read_bytes()
        except OSError as error:
            raise DataShardsError(f"{file}: cannot be read ({error.strerror})") from None
    return found


def _devkit_archive(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if member.size > _LARGEST_IN_DEVKIT or not member.isreg():
                    continue
                if name in (_NUMBERS, _META):
                    stream = tar.extractfile(member)
                    found[name] = stream.read() if stream else b""
    except (OSError, EOFError, tarfile.TarError, zlib.error, RecursionError) as error:
        problem = " ".join(str(error).split())[:200]  # tarfile writes a line a compression
        raise DataShardsError(f"{path}: the devkit cannot be read ({problem})") from None
    return found


def _from_devkit(path: Path, files: dict[str, bytes]) -> dict[str, str]:
    for name in (_NUMBERS, _META):
        if name not in files:
            raise DataShardsError(f"{path}: is not a devkit of ILSVRC2012: data/{name} is missing")
    wnids = _wnid_of_id(path, files[_META])
    labels = {}
    for number, text in enumerate(files[_NUMBERS].split(), 1):
        wnid = wnids.get(int(text)) if text.isdigit() and len(text) < 8 else None
        if wnid is None:
            shown = text[:20].decode("ascii", "replace")
            raise DataShardsError(f"{path}: {_NUMBERS}, line {number}: {shown!r} is not a class")
        labels[f"ILSVRC2012_val_{number:08d}"] = wnid
    return labels


def _wnid_of_id(path: Path, content: bytes) -> dict[int, str]:
    """Return the wnids of the synsets without children, by their ILSVRC2012 id.

    The ids do not follow the order of the wnids, so meta.mat is the only source.
    """
    # Import it here: it takes a fifth of a second, and only the flat archive needs it.
    from scipy.io import loadmat

    # loadmat accepts an open file, though scipy's annotations allow only paths.
    stream: Any = io.BytesIO(content)
    try:
        table = loadmat(stream, squeeze_me=True, variable_names=["synsets"])["synsets"]
        found = {
            int(number): str(wnid)
            for number, wnid, children in zip(
                table["ILSVRC2012_ID"], table["WNID"], table["num_children"], strict=True
            )
            if int(children) == 0
        }
    except Exception as error:  # scipy raises many kinds of errors on hostile files
        raise DataShardsError(f"{path}: {_META} cannot be read ({error!r:.100})") from None
    odd = next((wnid for wnid in found.values() if not _WNID.fullmatch(wnid)), None)
    if odd is not None:
        raise DataShardsError(f"{path}: {_META} has a wnid {odd[:20]!r}")
    return found
