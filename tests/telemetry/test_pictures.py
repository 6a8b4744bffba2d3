"""The pictures for TensorBoard: what a pixel shows is what the matrix says."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebias_dist.telemetry.pictures import confusion_image, sample_grid


@given(
    n=st.integers(1, 9),
    side=st.sampled_from([(1, 1), (28, 28), (14, 20), (64, 64), (100, 3)]),
    columns=st.integers(1, 5),
)
@settings(max_examples=30, deadline=None)
def test_every_pixel_of_a_sample_becomes_a_square(n, side, columns):
    images = np.random.default_rng(n).integers(0, 255, (n, 3, *side), dtype=np.uint8)
    grid = sample_grid(images, columns)
    factor = max(1, math.ceil(64 / max(side)))
    height, width = (factor * s for s in side)
    covered = 0
    for index, image in enumerate(images):
        row, column = divmod(index, min(columns, n))
        for y, x in [(0, 0), (height - 1, width - 1), (height // 2, width // 3)]:
            shown = grid[:, row * (height + 2) + y, column * (width + 2) + x]
            assert (shown == image[:, y // factor, x // factor]).all()
        covered += image[0].size * factor**2
    # All else is background, which no sample contains.
    assert (grid != 255).all(0).sum() == covered
    assert (grid == 255).all(0).sum() == grid[0].size - covered


def cividis(value: float) -> list[int]:
    from matplotlib import colormaps

    return [round(255 * float(c)) for c in colormaps["cividis"](value)[:3]]


def pixels_of(picture: np.ndarray, colour: list[int]) -> int:
    return int((np.abs(picture.astype(int) - np.array(colour)[:, None, None]) <= 1).all(0).sum())


def test_confusion_shows_values_as_colour_and_number():
    low, high = cividis(0.0), cividis(1.0)
    names = ["a", "b", "c", "d"]
    areas = {}
    for ones in (0, 4, 8):
        matrix = np.zeros((4, 4))
        matrix.flat[:ones] = 1
        picture = confusion_image(matrix, names, names, "Accuracy")
        assert picture.dtype == np.uint8
        areas[ones] = pixels_of(picture, high), pixels_of(picture, low)
    cell = (areas[8][0] - areas[0][0]) / 8
    print(f"a cell has {cell:.0f} pixels of its own colour")
    assert cell > 1000
    assert areas[4][0] - areas[0][0] == pytest.approx(4 * cell, rel=0.03)
    assert areas[0][1] - areas[8][1] == pytest.approx(8 * cell, rel=0.05)
    # The same colours with other numbers make another picture; so do counts.
    one = confusion_image(np.array([[10, 0]]), ["a"], ["b", "c"], "Counts", "label", "colour")
    two = confusion_image(np.array([[99, 0]]), ["a"], ["b", "c"], "Counts", "label", "colour")
    assert one.shape == two.shape
    assert 0 < (one != two).any(0).sum() < 0.05 * one[0].size


def test_confusion_takes_missing_cells_and_many_classes():
    names = [f"class {i}" for i in range(9)]
    empty = confusion_image(np.full((9, 9), np.nan), names, names, "t")
    zeros = confusion_image(np.zeros((9, 9)), names, names, "t")
    assert pixels_of(empty, cividis(0.0)) < 0.1 * pixels_of(zeros, cividis(0.0))
    names = [str(i) for i in range(1000)]
    large = confusion_image(np.eye(1000, dtype=np.int64), names, names, "ImageNet")
    assert max(large.shape) <= 1600
    with pytest.raises(ValueError, match="3 row labels"):
        confusion_image(np.eye(2), ["a", "b", "c"], ["a", "b"], "t")


@pytest.mark.parametrize("place", range(5))
def test_a_name_with_dollar_signs_is_drawn_as_it_is_and_no_formula(place):
    def drawn(name: str) -> np.ndarray:
        texts = [["a"], ["b"], "title", "rows", "columns"]
        texts[place] = [name] if place < 2 else name
        return confusion_image(np.zeros((1, 1), dtype=np.int64), *texts)

    for name in ("$$", "$\\foo$", "$_$", "$", "a_b^c{"):  # most are no formula at all
        drawn(name)
    # As formulas these would look alike.
    assert (drawn("$a b$") != drawn("$ab $")).any()


def test_figures_need_no_display_and_no_pyplot():
    code = (
        "import sys, rebias_dist.telemetry.pictures as f; assert 'matplotlib' not in sys.modules;"
        "import numpy as np; f.confusion_image(np.eye(2), list('ab'), list('ab'), 't');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_run_that_shows_no_pictures_draws_none(small_run, tmp_path):
    code = (
        "import json, sys; from rebias_dist.config.files import validate;"
        "from rebias_dist.train import main; main(validate(json.loads(sys.argv[1])));"
        "print(sorted({'matplotlib', 'tensorboard'} & sys.modules.keys()))"
    )
    config = json.dumps({**small_run, "name": "a", "max_steps": 2, "log": {"to": []}})
    command = [sys.executable, "-c", code, config]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "runs/a/results.json").exists()
