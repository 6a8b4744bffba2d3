"""The documentation builds as a site without a warning, and the site loads nothing from afar."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests import ROOT


class Loaded(HTMLParser):
    """Collects the addresses that a browser fetches to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(given.get("src", ""))
        if tag == "link" and given.get("rel") != "canonical":
            self.addresses.append(given.get("href", ""))


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build a site as ``make docs`` does."""
    pytest.importorskip("mkdocs", reason="comes with the extra docs")
    recipe = re.search(
        r"^docs:.*\n\t.*/mkdocs (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert recipe is not None
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        *recipe[1].split(),
        "-f",
        str(config),
        "-d",
        str(folder),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1000)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a page](other.md#there)", 0),
        ("[no page](missing.md)", 1),
        ("[no place](other.md#nowhere)", 1),
        ("![no picture](missing.png)", 1),
    ],
)
def test_a_dead_link_fails(tmp_path, text, found):
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "index.md").write_text(f"# Home\n\n{text}\n")
    (pages / "other.md").write_text("# Other\n\n## There\n")
    config = tmp_path / "mkdocs.yml"
    own = {"docs_dir": "docs", "nav": ["index.md", "other.md"], "hooks": [], "plugins": []}
    config.write_text(yaml.safe_dump({"INHERIT": str(ROOT / "mkdocs.yml"), **own}))
    done = build(config, tmp_path / "site")
    assert done.returncode == found, done.stderr


def test_pages_load_nothing_from_other_hosts(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert loaded.addresses
        assert not [at for at in loaded.addresses if re.match(r"(\w+:)?//", at)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\W*(https?:)?//", sheet.read_text(encoding="utf-8"))


def test_pages_are_filled_in(site):
    for page in site.rglob("*.html"):
        assert "{{" not in page.read_text(encoding="utf-8"), page
    configuration = (site / "configuration.html").read_text(encoding="utf-8")
    assert "<code>method.lambda_f</code>" in configuration
    commands = (site / "commands.html").read_text(encoding="utf-8")
    asked = (ROOT / "docs/commands.md").read_text(encoding="utf-8").count("{{ help: ")
    assert commands.count("usage: ") == asked
    assert "gather_features" in (site / "api.html").read_text(encoding="utf-8")
