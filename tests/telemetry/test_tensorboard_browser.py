"""TensorBoard on a real run, in a real browser: what it shows is there, with values."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rebias_dist.config.files import validate
from tests.support.browser import keep, needs_chromium, open_browser

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def board(few_digits, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """Where TensorBoard shows two short runs, and the folder of the runs."""
    from rebias_dist.train import main  # importing torch takes long

    folder = tmp_path_factory.mktemp("tensorboard")
    for seed in (0, 1):
        values = {
            "name": f"run{seed}",
            "seed": seed,
            "runs_dir": str(folder / "runs"),
            "global_batch": 48,
            "micro_batch": 24,
            "epochs": 2,
            "f": {"name": "simple_convnet", "kernel_size": 3, "width": 0.25},
            "g": [{"name": "simple_convnet", "kernel_size": 1, "width": 0.25}],
            "data": {"source": str(few_digits), "image_size": 8, "rho": 0.9},
        }
        main(validate(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder / "runs")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--load_fast", "false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        where = f"http://127.0.0.1:{port}"
        try:
            _wait_for(f"{where}/data/plugin/custom_scalars/layout", server, folder / "log")
            yield where, folder / "runs"
        finally:
            server.terminate()
            server.wait(60)


def _wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 1000
    while True:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                if b"f against g" in answer.read():
                    return
        except OSError:
            pass
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


# All text of a page, that inside its components and frames too.
_TEXT = """() => {
    const texts = [];
    const walk = root => root.querySelectorAll("*").forEach(element => {
        if (element.tagName === "STYLE" || element.tagName === "SCRIPT") return;
        for (const node of element.childNodes) {
            if (node.nodeType === Node.TEXT_NODE) texts.push(node.textContent.trim());
        }
        if (element.shadowRoot) walk(element.shadowRoot);
    });
    walk(document);
    return texts.filter(text => text).join(" ");
}"""


def shown(page, tab: str, wanted: list[str], address: str, picture: Path) -> None:
    """Open a tab and keep a picture once all that is wanted is there (regular expressions)."""
    page.goto("about:blank")
    page.goto(f"{address}/#{tab}")
    deadline = time.monotonic() + 1000
    while True:
        text = " ".join(frame.evaluate(_TEXT) for frame in page.frames)
        missing = [pattern for pattern in wanted if not re.search(pattern, text)]
        if not missing:
            page.wait_for_timeout(500)  # until it is drawn, for the picture
            keep(page, picture)
            return
        assert time.monotonic() < deadline, f"{tab}: {missing} is not in: {text[:3000]}"
        page.wait_for_timeout(500)


def accuracies(runs: Path) -> list[str]:
    """Return f's last unbiased accuracy of each run with five digits, as TensorBoard writes it."""
    found = [json.loads((run / "results.json").read_text()) for run in sorted(runs.iterdir())]
    last = [results["checkpoints"]["last"]["splits"]["unbiased"]["networks"] for results in found]
    return [f"{networks['f']['accuracy']:#.5g}" for networks in last]


def test_layout_hparams_projector_and_texts_are_there_with_values(board, tmp_path):
    address, runs = board
    complaints: list[str] = []
    with open_browser(complaints) as browser:
        page = browser.new_page()
        charts = ["f against g", "losses", "HSIC", "kernel radii", "accuracies in training"]
        # Two tags in each of two runs.
        charts.append(r"(?s)(Matches\s*\(\s*4\s*\).*?){4}")
        shown(page, "custom_scalars", charts, address, tmp_path / "layout.png")
        table = ["run0/tensorboard", "run1/tensorboard", "last_unbiased_f_accuracy"]
        table += [re.escape(value) for value in accuracies(runs)]
        shown(page, "hparams", table, address, tmp_path / "hparams.png")
        points = [r"Points:\s*120", r"unbiased_f:\d+"]
        shown(page, "projector", points, address, tmp_path / "projector.png")
        texts = ["environment", "config"]
        shown(page, "text", texts, address, tmp_path / "texts.png")
    print(f"pictures are in {tmp_path}")
    # TensorBoard warns of its own libraries.
    assert [said for said in complaints if not said.startswith("warning")] == []
