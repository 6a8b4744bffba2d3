"""Write clusters.csv beside the shards of a split: its images clustered by texture.

The clusters are computed as follows. Each image is resized (short side 256), cropped (224 from
the centre) and normalised as for ImageNet. Its texture is the Gram matrix of one layer of a
network, divided by its norm. Mini-batch k-means with three seeds gives three clusterings. The
default layer is the published one, VGG-16's conv3_3 before its ReLU. The textures are kept in a
temporary file: 132 kB an image for 256 channels, 6.6 GB for 50,000 images.

With --import, the clusters come from a published list with the columns path, category,
cluster1 …. A path is that of the image in its source, or its class (or its folder) and its name, or
its name alone. Images that are not in the list get no row.
"""

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import EXIT_CLEAN, UsageError
from data_shards.format.manifest import Manifest, load_split
from data_shards.images.clusters import (
    CLUSTERS_NAME,
    exists,
    import_published,
    read_published,
    write_clusters,
)
from data_shards.system.files import sha256_of

EXAMPLE = """
python -m data_shards cluster data/imagenet9/val --weights vgg16-397923af.pth --sheets sheets
python -m data_shards cluster data/imagenet9/val --import clusters.csv
"""

_CLUSTERINGS = 3
_SAMPLES = 40  # pictures on a sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``cluster``."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="a split (folder with a manifest)")
    parser.add_argument(
        "--import",
        dest="published",
        type=Path,
        metavar="FILE.csv",
        help="take the clusters from this list instead of computing them",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="torchvision's state dict of the network (torch.save); nothing is downloaded",
    )
    parser.add_argument(
        "--network", default="vgg16", help="a network of torchvision (default %(default)s)"
    )
    parser.add_argument(
        "--layer",
        default="conv3_3",
        metavar="NAME",
        help="its convolution; conv1_1 … conv5_3 for vgg16, else the module's name "
        "(default %(default)s)",
    )
    parser.add_argument(
        "--clusters",
        type=int,
        default=9,
        metavar="K",
        help="clusters in each clustering (default %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="the clusterings have the seeds SEED, SEED+1 and SEED+2 (default %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes (default %(default)s)"
    )
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="folder of the temporary file (default: DIR)"
    )
    parser.add_argument(
        "--sheets",
        type=Path,
        metavar="DIR",
        help=f"also write a PNG of up to {_SAMPLES} images of each cluster",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    """Compute or import clusters."""
    if (arguments.published is None) == (arguments.weights is None):
        raise UsageError(
            "give --weights, the network's file of weights (nothing is downloaded), or --import, "
            "a published list"
        )
    if arguments.clusters < 2 or arguments.workers < 1 or arguments.seed < 0:
        raise UsageError("--clusters must be at least 2, --workers at least 1, --seed at least 0")
    manifest, index = load_split(arguments.folder)
    if arguments.published is not None:
        return _import(arguments, manifest, index)
    return _compute(arguments, manifest, index)


def _import(arguments: argparse.Namespace, manifest: Manifest, index: NDArray[np.void]) -> int:
    rows = read_published(arguments.published)
    join = import_published(arguments.folder, manifest, index, rows)
    if not join.clusters:
        raise UsageError(
            f"{arguments.published}: none of its {len(rows)} paths is an image of "
            f"{arguments.folder}; the first is {rows[0].path}"
        )
    write_clusters(arguments.folder, join.clusters)
    if arguments.sheets is not None:
        _sheets(arguments, manifest, index, join.clusters)
    report = {
        "path": str(arguments.folder / CLUSTERS_NAME),
        "matched": len(join.clusters),
        "missing_in_shards": len(join.rows_left),
        "missing_in_list": len(join.samples_left),
        "clusterings": len(rows[0].clusters),
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        print(
            f"{report['path']}: {report['matched']} images matched; {report['missing_in_shards']} "
            f"rows without an image in the shards, {report['missing_in_list']} images without a "
            "row"
        )
    return EXIT_CLEAN


def _compute(arguments: argparse.Namespace, manifest: Manifest, index: NDArray[np.void]) -> int:
    from tqdm import tqdm

    from data_shards.images.textures import Layer, Textures, cluster, disk_needed, feature_rows

    folder: Path = arguments.folder
    if (folder / CLUSTERS_NAME).exists():
        raise exists(folder)
    if manifest.samples < arguments.clusters:
        raise UsageError(
            f"{folder}: its {manifest.samples} images make no {arguments.clusters} clusters; "
            "give a smaller --clusters"
        )
    scratch: Path = arguments.scratch or folder
    if not scratch.is_dir():
        raise UsageError(f"{scratch}: no such folder for --scratch")
    layer = Layer(arguments.network, arguments.layer, arguments.weights)
    width = Textures(layer).width
    needed, free = disk_needed(manifest.samples, width), shutil.disk_usage(scratch).free
    say = f"{manifest.samples} rows of {width} numbers need {needed / 1e9:.2f} GB in {scratch}"
    if needed > free:
        raise UsageError(f"{say}, which has {free / 1e9:.2f} GB left; give another --scratch")
    print(say, file=sys.stderr)
    quiet = arguments.json or not sys.stderr.isatty()
    seeds = range(arguments.seed, arguments.seed + _CLUSTERINGS)
    with (
        tqdm(total=manifest.samples, unit="image", disable=quiet) as bar,
        feature_rows(
            folder,
            manifest,
            layer,
            width,
            scratch=scratch,
            workers=arguments.workers,
            on_rows=bar.update,
        ) as rows,
    ):
        found = np.stack([cluster(rows, arguments.clusters, seed) for seed in seeds], axis=1)
    keys = [key.decode() for key in index["key"].tolist()]
    clusters = dict(zip(keys, map(tuple, found.tolist()), strict=True))
    write_clusters(folder, clusters)
    if arguments.sheets is not None:
        _sheets(arguments, manifest, index, clusters)
    with arguments.weights.open("rb") as file:
        weights = sha256_of(file)
    report = {
        "path": str(folder / CLUSTERS_NAME),
        "samples": len(clusters),
        "network": layer.network,
        "layer": layer.module,
        "weights_sha256": weights,
        "seeds": list(seeds),
        "sizes": [np.bincount(column, minlength=arguments.clusters).tolist() for column in found.T],
    }
    if arguments.json:
        print(json.dumps(report))
    else:
        print(f"{report['path']}: {len(clusters)} images, {layer.network} {layer.module}")
        for seed, sizes in zip(seeds, found.T, strict=True):
            print(f"  seed {seed}: {np.bincount(sizes, minlength=arguments.clusters).tolist()}")
    return EXIT_CLEAN


def _sheets(
    arguments: argparse.Namespace,
    manifest: Manifest,
    index: NDArray[np.void],
    clusters: Mapping[str, tuple[int, ...]],
) -> None:
    """Write a sheet of each cluster with a fixed random draw of its images."""
    from data_shards.format.samples import read_image
    from data_shards.images.sheets import Strip, sheet
    from data_shards.ordering import permutation
    from data_shards.system.files import write_synced

    arguments.sheets.mkdir(parents=True, exist_ok=True)
    rows_with_clusters = [n for n, key in enumerate(index["key"]) if key.decode() in clusters]
    known = index[rows_with_clusters]
    found = np.array([clusters[key.decode()] for key in known["key"]])
    for number, column in enumerate(found.T):
        for value in np.unique(column).tolist():
            rows = known[column == value]
            drawn = np.sort(permutation(len(rows), "cluster sheet", value)[:_SAMPLES])
            images = [read_image(arguments.folder, manifest, row) for row in rows[drawn]]
            classes = Counter(manifest.classes[label] for label in rows["label"])
            common = ", ".join(f"{name}: {count}" for name, count in classes.most_common(5))
            title = f"cluster{number + 1} = {value}: {len(rows)} images"
            write_synced(
                arguments.sheets / f"cluster{number + 1}-{value}.png",
                sheet(title, [Strip(common, images)], 8),
            )
