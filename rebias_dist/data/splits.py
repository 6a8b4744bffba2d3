"""The splits of a data set, opened together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebias_dist.config.bias import BiasRule
from rebias_dist.config.schema import Config
from rebias_dist.data.bias import Values, find_rule, values_of
from rebias_dist.data.decode import choose_decoder
from rebias_dist.data.shards import ShardDataset, open_split, root_and_split
from rebias_dist.errors import ConfigError


@dataclass(frozen=True)
class Data:
    """The splits of a data set."""

    train: ShardDataset
    selection: ShardDataset | None
    tests: dict[str, ShardDataset]
    rule: BiasRule
    """Which value of the bias goes with each class; the ids of all splits are those of its values.
    """

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
                root, _ = root_and_split(self.train.place)
                raise ConfigError(
                    f"{root}: the split {name} is not the one that the run "
                    "was started with; restore it, or start a new run under another name"
                )

    def check(self) -> None:
        """Check every shard's size and every index; DataError names the file that differs."""
        for split in (self.train, self.selection, *self.tests.values()):
            if split is not None:
                split.check_files()


def open_data(config: Config, root: str | Path, rule: BiasRule | None = None) -> Data:
    """Open all splits of a configuration; they must agree on their classes.

    Args:
        config: of the run.
        root: folder or address of the splits' folders.
        rule: the rule that a run keeps; None: it is found from the training data.

    Raises:
        ConfigError: a split is missing, the splits differ in data set or classes, or there is no
            such attribute.
        DataError: a split is damaged.
    """
    wanted = config.data
    decoder = choose_decoder(wanted.decoder)
    # The first split with bias labels gives the values their ids.
    bias: str | Values | None = values_of(rule) or wanted.bias

    def opened(
        folder: str | Path, split: str, dataset: str | None, classes: Sequence[str] | None
    ) -> ShardDataset:
        nonlocal bias
        found = open_split(
            folder,
            split,
            dataset=dataset,
            classes=classes,
            decoder=decoder,
            bias=bias,
            cache_gb=wanted.cache_gb,
        )
        bias = found.values if found.values.names else bias
        return found

    name = wanted.dataset
    train = opened(root, wanted.train_split, name, None)
    classes = train.manifest.classes
    selection = None
    if wanted.selection != "none":
        selection = opened(root, "selection", name, classes)
    tests = {split: opened(root, split, name, classes) for split in wanted.test_splits}
    for test, place in wanted.other_tests.items():
        tests[test] = opened(*root_and_split(place), None, classes)
    if isinstance(bias, str):
        raise ConfigError(f"data.bias: {bias!r}: the shards in {root} have no attributes; unset it")
    if rule is None:
        rule = find_rule(wanted.aligned, bias or Values(), classes, train.labels, train.bias)
    return Data(train, selection, tests, rule)
