"""The documentation builds as a site without a warning, and the site loads nothing from afar."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

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


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="comes with the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


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
    assert "rebias-launch slurm [-h]" in (site / "commands.html").read_text(encoding="utf-8")
    assert "gather_features" in (site / "api.html").read_text(encoding="utf-8")
