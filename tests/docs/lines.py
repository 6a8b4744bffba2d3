"""The command lines that a reader may copy: of pages, helps, configurations and scripts."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
_HELPS = sorted(
    path
    for room in ("rebias_dist", "launch", "data_shards")
    for path in ROOT.glob(f"{room}/commands/*.py")
)
_HEADERS = [*sorted(ROOT.glob("configs/*/**/*.yaml")), ROOT / "launch/imagenet9.sh"]
_MODULES = {
    "data_shards": "rebias-shards",
    "launch": "rebias-launch",
    "rebias_dist.train": "rebias-train",
    "rebias_dist.commands.evaluate": "rebias-evaluate",
}
_STARTS = re.compile(
    r"(?<!\S)((?P<script>rebias-[a-z]+|launch/imagenet9\.sh)|-m (?P<module>[a-z_]+[a-z_.]*))(?!\S)"
)
_BLOCK = re.compile(r"^ *```(?:sh|bash)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_EXAMPLES = re.compile(r'^(?:EXAMPLES?|_EPILOG) = """(.*?)"""', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command of ours, by its name as a console script."""

    page: Path
    program: str
    words: list[str]
    before: str
    """What stands before it on the line: torchrun, srun."""
    context: str
    """The text above the line, which may say how many nodes there are."""

    def __str__(self) -> str:
        return f"{self.page.name}: {self.program} {' '.join(self.words)}"[:80]

    @property
    def at_address(self) -> bool:
        """Return whether it needs shards at an address."""
        return any("://" in word for word in self.words)

    @property
    def ranks(self) -> int:
        """Return the ranks that torchrun or srun starts."""
        per_node = re.findall(r"--(?:nproc|ntasks)[-_]per[-_]node=(\d+)", self.before)
        where = self.context if "$SLURM_NNODES" in self.before else self.before
        nodes = re.search(r"--(?:nnodes|nodes)=(\d+)|(\d+) nodes", where)
        assert nodes or "$SLURM_NNODES" not in self.before, f"{self}: on how many nodes?"
        return max(map(int, per_node), default=1) * (int(nodes[1] or nodes[2]) if nodes else 1)


def _of_page(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines of a page's shell blocks, each with the paragraph above the block."""
    text = page.read_text(encoding="utf-8")
    for block in _BLOCK.finditer(text):
        above = text[: block.start()].rstrip().rpartition("\n\n")[2]
        for line in _joined(block[1]):
            yield line, above
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.finditer(r"(?:^    .*\n)+", outside, re.MULTILINE):
        for line in _joined(block[0]):
            yield line, ""


def _of_help(module: Path) -> Iterator[tuple[str, str]]:
    """Yield the examples of a command's help."""
    text = module.read_text(encoding="utf-8")
    for block in re.findall(
        r'^(?:EXAMPLES?|_EPILOG) = """(.*?)"""', text, re.MULTILINE | re.DOTALL
    ):
        for line in _joined(block):
            yield re.split(r"\s{3,}", line)[0], ""  # an explanation follows


def _of_header(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the commands of the comment that opens a file; they begin a line or follow a label."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = "\n".join(line.lstrip("#") for line in lines if line.startswith("#"))
    for line in _joined(comment):
        line = re.sub(r"^(Command|Shards): +", "", line)
        if re.match(r"(rebias-|torchrun |python -m |launch/)", line):
            for part in re.split(r"\s{3,}|; ", line):
                yield part, ""


def _joined(block: str) -> list[str]:
    return [line.strip() for line in re.sub(r"\\\n\s*", " ", block).splitlines()]


def _commands(page: Path, lines: Iterator[tuple[str, str]]) -> Iterator[Command]:
    for line, above in lines:
        if (match := _STARTS.search(line)) and not line.startswith("eval "):
            rest = re.split(r"\s[>|]\s", line[match.end() :])[0]
            if rest.count("'") % 2:  # of bash -c '…'
                rest = rest.removesuffix("'")
            program = match["script"] or _MODULES.get(match["module"])
            if program is not None:  # python -m venv
                words = shlex.split(rest, comments=True)
                yield Command(page, program, words, line[: match.start()], above)


def commands_of_page(page: Path) -> list[Command]:
    """Return the commands of a page in Markdown."""
    return list(_commands(page, _of_page(page)))


CASES = [
    *(command for page in PAGES for command in commands_of_page(page)),
    *(command for module in _HELPS for command in _commands(module, _of_help(module))),
    *(command for file in _HEADERS for command in _commands(file, _of_header(file))),
]
