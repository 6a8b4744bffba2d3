"""The times on the page about performance are those of the record."""

import json

from tests import ROOT

PAGE = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
RECORD = json.loads((ROOT / "benchmarks/results/memory_format.json").read_text(encoding="utf-8"))


def rows(head: str) -> list[list[str]]:
    """The rows under a table's head, as cells."""
    lines = PAGE[PAGE.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def milliseconds(cell: dict[str, float]) -> str:
    """The median as the page shows it: three digits, or a whole number."""
    median = 1e3 * cell["median"]
    return f"{median:.0f}" if median >= 100 else f"{median:.3g}"


def test_the_tables_of_memory_formats_are_those_of_the_record():
    formats, pools = RECORD["tables"]
    assert rows("| network | images | precision |") == [
        [network, f"{images} of {side}", precision, milliseconds(first), milliseconds(last), ratio]
        for network, precision, images, side, first, last, ratio in formats["rows"]
    ]
    assert rows("| network | precision | torch's mean |") == [
        [network, precision, milliseconds(mean), milliseconds(ours), ratio]
        for network, precision, _, _, mean, ours, ratio in pools["rows"]
    ]
    assert RECORD["machine"]["malloc"] in PAGE
