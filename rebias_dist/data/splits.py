"""The splits of a data set, opened together."""

from __future__ import annotations

from dataclasses import dataclass

from rebias_dist.data.shards import ShardDataset
from rebias_dist.errors import ConfigError


@dataclass(frozen=True)
class Data:
    """The splits of a data set."""

    train: ShardDataset
    selection: ShardDataset | None
    tests: dict[str, ShardDataset]

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, by label."""
        return self.train.manifest.classes

    @property
    def monitored(self) -> dict[str, ShardDataset]:
        """Return the splits that are evaluated during training.

        These are the selection data. Only without selection data are they the test splits; the
        checkpoint that test data choose is an oracle's.
        """
        return self.tests if self.selection is None else {"selection": self.selection}

    def digests(self) -> dict[str, str]:
        """Return the digest of the manifest of each split that a run depends on."""
        splits = {"train": self.train, **self.tests}
        if self.selection is not None:
            splits["selection"] = self.selection
        return {name: split.manifest.digest for name, split in splits.items()}

    def check_digests(self, expected: dict[str, str]) -> None:
        """Check that no split differs from the one that a run was started with.

        Args:
            expected: digests by split, as :meth:`digests` returned them then.

        Raises:
            ConfigError: a split differs.
        """
        for name, digest in self.digests().items():
            if name in expected and expected[name] != digest:
                root = self.train.place.rpartition("/")[0]
                raise ConfigError(
                    f"{root}: the split {name} is not the one that the run "
                    "was started with; restore it, or start a new run under another name"
                )

    def check(self) -> None:
        """Check every shard's size and every index; DataError names the file that differs."""
        for split in (self.train, self.selection, *self.tests.values()):
            if split is not None:
                split.check_files()
