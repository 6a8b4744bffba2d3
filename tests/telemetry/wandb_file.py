"""Reads the file that W&B writes in its offline mode: records of protobuf in LevelDB's log format.

https://github.com/google/leveldb/blob/main/doc/log_format.md: blocks of 32 KiB hold pieces, each
with a CRC (4 bytes), its length (2) and its type (1): whole, first, middle or last.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32768
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records_of(path: Path) -> Iterator[Record]:
    """Yield the records of a file ``run-<id>.wandb``."""
    content = path.read_bytes()
    assert content.startswith(b":W&B")
    at, parts = 7, b""
    while at + 7 <= len(content):
        if _BLOCK - at % _BLOCK < 7:  # a block's end is padded
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        piece = content[at + 7 : at + 7 + length]
        at += 7 + length
        parts = piece if kind in (_WHOLE, _FIRST) else parts + piece
        if kind in (_WHOLE, _LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


def items_of(items: object) -> dict:
    """Return the values of a record's items by name."""
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for item in items  # type: ignore[attr-defined]
    }
