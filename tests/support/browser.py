"""A real browser for tests: Debian's Chromium, driven by playwright, without a network."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium; apt-get install chromium"
)


@contextmanager
def open_browser(complaints: list[str], **options) -> Iterator[BrowserContext]:
    """Yield a browser; what its pages complain about is added to ``complaints``.

    These are errors and warnings on the console, exceptions, and requests that fail.
    """
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        context.set_default_timeout(120_000)  # the machine may be busy

        def on_console(message) -> None:
            if message.type in ("error", "warning"):
                complaints.append(f"{message.type}: {message.text}")

        context.on("console", on_console)
        context.on("weberror", lambda error: complaints.append(f"exception: {error.error}"))
        context.on("requestfailed", lambda r: complaints.append(f"{r.url}: {r.failure}"))
        yield context
        browser.close()


def keep(page, path: Path) -> None:
    """Keep a picture of the whole page."""
    page.screenshot(path=path, full_page=True)
    assert path.stat().st_size > 10_000
