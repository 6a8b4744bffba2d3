"""The report of real runs in a real browser, and on a machine without display and network."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from rebias_dist.config.files import validate
from tests.support.browser import keep, needs_chromium, open_browser


@pytest.fixture(scope="module")
def page(few_digits, tmp_path_factory) -> Path:
    """The page of a run of rebias, one of vanilla, and one of vanilla that is not finished."""
    from rebias_dist.train import main  # importing torch takes long

    folder = tmp_path_factory.mktemp("report")
    for method in ("rebias", "vanilla"):
        values = {
            "name": f"{method}0",
            "runs_dir": str(folder / "runs"),
            "global_batch": 48,
            "micro_batch": 24,
            "epochs": 2,
            "method": {"name": method},
            "f": {"name": "simple_convnet", "kernel_size": 3, "width": 0.25},
            "g": [{"name": "simple_convnet", "kernel_size": 1, "width": 0.25}],
            "optimizer": {"lr": 0.01},
            "radius": {"f": 1.0, "g": 1.0},
            "data": {"source": str(few_digits), "image_size": 8, "rho": 0.9},
        }
        main(validate(values))
    going_on = folder / "runs/vanilla1"
    shutil.copytree(folder / "runs/vanilla0", going_on)
    for name, old, new in (
        ("state.json", '"finished"', '"running"'),
        ("config.yaml", "seed: 0", "seed: 1"),
    ):
        path = going_on / name
        path.write_text(path.read_text().replace(old, new))
    # In a process that sees no display and, where the system lets us, no network either.
    command = [sys.executable, "-m", "rebias_dist.commands.report", str(folder / "runs")]
    command += ["--out", str(folder / "out")]
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") and subprocess.run([*alone, "true"], check=False).returncode == 0:
        command = [*alone, *command]
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=1000
    )
    assert done.returncode == 0, done.stderr
    return folder / "out" / "results.html"


def cells(page, caption: str) -> list[list[str]]:
    """Return the texts of the table whose caption begins so, its head left out."""
    table = page.locator("table").filter(has=page.locator("caption", has_text=caption)).first
    rows = table.locator("tbody tr").all()
    return [row.locator("th, td").all_inner_texts() for row in rows]


@needs_chromium
@pytest.mark.timeout(3600)  # whole runs and a browser, on a machine that may be busy
@pytest.mark.parametrize(
    ("scheme", "javascript"), [("light", True), ("dark", False)], ids=["light", "dark without js"]
)
def test_a_browser_shows_tables_pictures_and_images(page, scheme, javascript):
    complaints: list[str] = []
    options = {"java_script_enabled": javascript, "color_scheme": scheme, "offline": True}
    with open_browser(complaints, **options) as browser:
        view = browser.new_page()
        requested: list[str] = []
        view.on("request", lambda request: requested.append(request.url.partition(":")[0]))
        view.goto(page.as_uri())
        found = cells(view, "Accuracy in percent")
        # The last and the best checkpoint of two settings, with the networks that each has.
        named = Counter((row[0], row[1]) for row in found)
        chosen = ("last", "best on selection data")
        assert named == {(m, c): n for m, n in (("rebias", 2), ("vanilla", 1)) for c in chosen}
        for row in found:
            assert all(0 <= float(cell.split()[0]) <= 100 for cell in row[4:]), row
            assert row[3] == {"vanilla": "1 of 2", "rebias": "1"}[row[0]]
        by_rho = cells(view, "Biased-MNIST")
        assert [row[1].startswith("here") for row in by_rho] == [True] * 4
        differs = {row[0]: row[1:] for row in cells(view, "What differs")}
        assert differs["epochs"] == ["2", "80"]
        assert "vanilla1: unfinished (status 'running')" in view.locator("#without").inner_text()

        splits = view.locator("h4", has_text="Images of the test split").all_inner_texts()
        assert [text.split()[-1] for text in splits] == ["biased", "unbiased", "rho0"]
        # It is open, for its images are what there is to see.
        part = view.locator("details", has=view.locator("summary", has_text="rebias")).first
        images = part.locator("figure svg image")
        assert images.count() > 0
        widths = [image.bounding_box()["width"] for image in images.all()]
        assert min(widths) > 40
        for picture in view.locator("figure svg").all():
            if picture.is_visible():
                assert picture.bounding_box()["width"] > 200
        assert "rebias-train --config" in part.locator(".runs code").first.inner_text()
        keep(view, page.parent / f"{scheme}.png")
    with Image.open(page.parent / f"{scheme}.png") as picture:
        brightness = picture.convert("L").getpixel((2, 2))
    assert brightness > 240 if scheme == "light" else brightness < 40
    assert complaints == []
    assert set(requested) <= {"file", "data"}
