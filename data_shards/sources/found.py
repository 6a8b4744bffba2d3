"""What a search for the images of a data set found, and what is to be said about it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from data_shards.findings import Finding
from data_shards.litter import count_litter
from data_shards.sources.archives import packed_name, printable
from data_shards.sources.datasets import Dataset
from data_shards.sources.labels import Labels

UNKNOWN: Final = "unknown-class"  # the reason of images in a folder that is no class
_SHOWN: Final = 5
_LABELS_HINT: Final = "; --labels takes a table of their classes, a CSV with the columns name,wnid"


class Row(NamedTuple):
    """An image, before it becomes an :class:`~data_shards.sources.listing.Item`."""

    key: str
    source: str
    wnid: str
    path: str
    offset: int
    length: int
    flags: tuple[str, ...] = ()


@dataclass
class Found:
    """What a search found, by split.

    ``rows`` are the images, ``archives`` (name: md5) hold them, ``findings`` are the files that
    were not taken, ``refused`` the regular files among them, ``outside`` are the wnids of other
    data sets, ``ignored`` other files, ``litter`` folders that are hidden or another program's,
    ``deeper`` the images that lie in folders below a class folder, ``entered`` the folder or
    archive of a split in the source, ``packed`` compressed archives (split, name without endings,
    path), ``told`` further warnings.
    """

    rows: dict[str, list[Row]] = field(default_factory=dict)
    archives: dict[str, dict[str, str | None]] = field(default_factory=dict)
    findings: dict[str, list[Finding]] = field(default_factory=dict)
    refused: dict[str, list[Row]] = field(default_factory=dict)
    outside: dict[str, set[str]] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    litter: dict[str, list[str]] = field(default_factory=dict)
    deeper: dict[str, list[str]] = field(default_factory=dict)
    told: dict[str, list[str]] = field(default_factory=dict)
    packed: list[tuple[str, str, str]] = field(default_factory=list)
    other_splits: set[str] = field(default_factory=set)
    entered: dict[str, str] = field(default_factory=dict)

    def warnings(self, split: str, dataset: Dataset) -> list[str]:
        """Return warnings about other synsets, files that are not images and odd folders."""
        lines = [*self.told.get(split, [])]
        homeless = [f for f in self.findings.get(split, []) if UNKNOWN in f.reasons]
        if homeless:
            count = sum(finding.images for finding in homeless)
            lines.append(
                f"{count:,} images lie in no class folder, for example in {homeless[0].path}"
                + (_LABELS_HINT if dataset.can_train else "")
            )
        outside = self.outside.get(split)
        if outside:
            lines.append(f"synsets that are not in {dataset.name}: {len(outside):,}")
        ignored = self.ignored.get(split)
        if ignored:
            more = f" and {len(ignored) - _SHOWN} more" if len(ignored) > _SHOWN else ""
            shown = ", ".join(sorted(ignored)[:_SHOWN])
            lines.append(f"{len(ignored):,} files are not images by their names: {shown}{more}")
        litter = self.litter.get(split)
        if litter:
            lines.append(f"folders of other programs are not read: {count_litter(litter)}")
        deeper = self.deeper.get(split)
        if deeper:
            lines.append(
                f"{len(deeper):,} images lie in folders below a class folder and count as its "
                f"class: {min(deeper)}"
            )
        return lines

    def miss_packed(self, dataset: Dataset) -> None:
        """Refuse compressed archives of a split or a class of which no image was found unpacked."""
        for split, name, path in self.packed:
            rows = self.rows.get(split, [])
            if name in dataset.class_map.labels:
                rows = [row for row in rows if row.wnid == name]
            if not rows:
                finding = Finding(path, "refused", ("compressed-archive",), images=0)
                self.findings.setdefault(split, []).append(finding)

    def compare_with(
        self, dataset: Dataset, labels: Labels, split: str, unlisted: Sequence[int]
    ) -> None:
        """Tell how a file of labels and the images differ.

        ``unlisted`` are the images of each source whose split the table decides, but which are not
        in it.
        """
        name = printable(labels.path.name)
        told = self.told.setdefault(split, [])
        if not labels.used:
            told.append(f"{name}: is not used; every image has its class from a folder or a name")
        if not unlisted:
            return
        if sum(unlisted):
            told.append(
                f"{sum(unlisted):,} images are not in {name}, so they do not belong to this split"
            )
        known = dataset.class_map.labels
        missing = [n for n, w in labels.wnids.items() if w in known and n not in labels.used]
        if missing:
            some = ", ".join(map(printable, missing[:_SHOWN]))
            told.append(f"{len(missing):,} names of {name} have no image: {some}")
            finding = Finding(name, "refused", ("no-image",), images=len(missing))
            self.findings.setdefault(split, []).append(finding)

    def hint(self, dataset: Dataset) -> str:
        """Return the end of the message that there is no image: an example, or a cure."""
        unknown = [f for findings in self.findings.values() for f in findings][:1]
        if unknown:
            cure = _LABELS_HINT if UNKNOWN in unknown[0].reasons and dataset.can_train else ""
            if "compressed-archive" in unknown[0].reasons:
                cure = "; unpack it first"
            if "extension" in unknown[0].reasons:
                cure = "; --reencode takes WebP, BMP, TIFF and GIF images"
            return f"; for example {unknown[0].path}: {', '.join(unknown[0].reasons)}{cure}"
        if self.other_splits:
            return f"; its names are of {', '.join(sorted(self.other_splits))}"
        if self.outside:
            return "; its folders are other synsets"
        packed = [path for paths in self.ignored.values() for path in paths if packed_name(path)]
        if packed:
            return f"; it holds {min(packed)}, which is compressed: unpack it first"
        return "; it should have folders or archives named by wnid, such as n01440764"

    def miss_empty(self, sources: Sequence[str], first: str) -> None:
        """Refuse the folder of a split that has neither images nor other findings.

        Empty ``sources`` are told with the split ``first``.
        """
        for source in sources:
            finding = Finding(printable(source), "refused", ("no-images",), images=0)
            self.findings.setdefault(first, []).append(finding)
        for split, path in self.entered.items():
            if split not in self.rows and split not in self.findings:
                self.findings[split] = [Finding(path, "refused", ("no-images",), images=0)]
