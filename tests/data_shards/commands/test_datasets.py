"""What data sets and sources look like on the command line."""

import argparse
import shlex
import subprocess
import sys

import pytest

from data_shards.commands.datasets import DATASETS, add_arguments, example, listings_from
from data_shards.errors import UsageError
from data_shards.sources.datasets import check_name
from data_shards.sources.presets import PRESETS
from rebias_dist.reporting.protocol import PROTOCOLS
from rebias_dist.reporting.published import published
from tests.data_shards import trees


def _parse(name, *words):
    parser = argparse.ArgumentParser()
    add_arguments(parser, name)
    arguments = parser.parse_args(list(words))
    return argparse.Namespace(**vars(arguments), dataset=name, seed=3, json=True, reencode=False)


@pytest.mark.parametrize("name", DATASETS)
def test_the_example_of_each_data_set_is_understood(name):
    words = shlex.split(example(name))
    assert words[:5] == ["python", "-m", "data_shards", "convert", name]
    output = words.index("--output")
    arguments = _parse(name, *words[5:output], *words[output + 2 :])
    assert arguments.source
    assert words[output + 1].startswith("shards/")


def test_nothing_heavy_is_imported_for_the_help():
    script = (
        "import sys, data_shards.commands.datasets\n"
        "print(sorted({'torch', 'scipy', 'webdataset', 'PIL'} & set(sys.modules)))\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=1000, check=True
    )
    assert shown.stdout == "[]\n"


def test_listings_from_the_command_line(tmp_path):
    train = trees.write_folder(tmp_path / "train", trees.train_images())
    styled = trees.write_folder(tmp_path / "styled", trees.train_images())
    (found,) = listings_from(
        _parse(
            "imagenet9", "--source", str(train), "--split", "train", "--stylised", str(styled),
            "--selection-fraction", "0.2",
        )
    )  # fmt: skip
    assert (found.dataset, found.split, len(found.items)) == ("imagenet9", "train", 80)
    assert found.facts["selection_seed"] == 3

    images = trees.adversarial_images()
    archive = trees.write_tar(tmp_path / "a.tar", trees.nested(images, "imagenet-a"))
    (adversarial,) = listings_from(_parse("imagenet9-a", "--source", str(archive), "--no-md5"))
    assert (adversarial.split, len(adversarial.items)) == ("test", 8)
    assert "archives_md5" not in adversarial.facts

    corrupted = [
        trees.write_tar(tmp_path / f"{c}.tar", trees.nested(trees.val_images(), c, "2"))
        for c in ("fog", "frost")
    ]
    both = listings_from(_parse("imagenet9-c", "--source", *map(str, corrupted)))
    assert [listing.split for listing in both] == ["fog-2", "frost-2"]

    classes = tmp_path / "mine.csv"
    classes.write_text("wnid,class\nn02085620,dog\nn01440764,fish\n")
    words = ["--name", "mine", "--classes", str(classes), "--source", str(train)]
    found = listings_from(_parse("folder", *words, "--selection-fraction", "0.1"))
    assert [(f.dataset, f.split, len(f.items)) for f in found] == [
        ("mine", "train", 18),
        ("mine", "selection", 2),
    ]
    assert {(item.wnid, item.label) for item in found[0].items} == {
        ("n02085620", 0),
        ("n01440764", 1),
    }
    for taken in ("imagenet9", "biased_mnist"):
        with pytest.raises(UsageError, match="is the name of another data set; give another"):
            listings_from(_parse("folder", "--name", taken, *words[2:]))


def test_names_with_published_figures_are_refused_and_no_others():
    for name in {*PROTOCOLS, *published()["dataset"]}:
        with pytest.raises(UsageError, match="is the name of another data set"):
            check_name(name)
    for name in PRESETS:
        check_name(name)


def test_evaluation_sets_offer_no_training_options():
    for name in ("imagenet-a", "imagenet9-c"):
        with pytest.raises(SystemExit) as caught:
            _parse(name, "--source", "x", "--stylised", "y")
        assert caught.value.code == 2
