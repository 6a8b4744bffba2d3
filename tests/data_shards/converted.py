"""A listing of small real files, and its conversion, for tests."""

from collections.abc import Callable
from pathlib import Path

from data_shards.convert.pipeline import convert_listing
from data_shards.convert.plan import Conversion, Options
from data_shards.convert.publish import Limit
from data_shards.format.manifest import Manifest
from data_shards.sources.listing import Item, Listing
from tests.data_shards.trees import jpeg


def listing(
    folder: Path, count: int = 40, *, split: str = "train", damaged: tuple[int, ...] = ()
) -> Listing:
    """Images in ``folder``, of which those at ``damaged`` are cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for number in range(count):
        content = jpeg(number)
        if number in damaged:
            content = content[:-40]
        path = folder / f"{number}.jpg"
        path.write_bytes(content)
        items.append(
            Item(
                source=f"{split}/{number}.jpg",
                key=f"k{number}",
                label=number % 3,
                wnid=f"n{number % 3:08d}",
                path=str(path),
                offset=0,
                length=len(content),
            )
        )
    return Listing("toy", split, ("a", "b", "c"), tuple(items))


def converted(
    source: Listing,
    output: Path,
    *,
    workers: int = 1,
    limit: Limit = Limit(),  # noqa: B008  # frozen
    part: tuple[int, int] = (1, 1),
    quarantine: Path | None = None,
    on_shard: Callable[[int, bool], object] = lambda images, written: None,
    **options: object,
) -> Manifest | None:
    """Convert in shards of 7 unless ``options`` say otherwise."""
    chosen = Options(**{"samples_per_shard": 7, **options})
    return convert_listing(
        Conversion(source, chosen),
        output,
        workers=workers,
        limit=limit,
        part=part,
        quarantine=quarantine,
        on_shard=on_shard,
    )
