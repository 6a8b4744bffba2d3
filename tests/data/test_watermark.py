"""The watermark of ImageNet-W, drawn in fonts made here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from hypothesis import given, settings
from hypothesis import strategies as st

from rebias_dist.data.transforms import identity
from rebias_dist.data.watermark import TEXT, Watermarked, checked_font
from rebias_dist.errors import ConfigError

UNITS = 1000


def make_font(path: Path, characters: str) -> Path:
    """Write a font whose characters are squares of 0.8 em that stand on the baseline."""

    def square(side: int):
        pen = TTGlyphPen(None)
        pen.moveTo((100, 0))
        for corner in ((100, side), (100 + side, side), (100 + side, 0)):
            pen.lineTo(corner)
        pen.closePath()
        return pen.glyph()

    names = {character: f"uni{ord(character):04X}" for character in characters}
    glyphs = {".notdef": square(300), **{name: square(800) for name in names.values()}}
    font = FontBuilder(UNITS, isTTF=True)
    font.setupGlyphOrder([*glyphs])
    font.setupCharacterMap({ord(character): name for character, name in names.items()})
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics({name: (UNITS, 100) for name in glyphs})
    font.setupHorizontalHeader(ascent=UNITS, descent=0)
    font.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    font.setupOS2(sTypoAscender=UNITS, usWinAscent=UNITS, usWinDescent=0)
    font.setupPost()
    font.save(path)
    return path


@pytest.fixture(scope="module")
def font(tmp_path_factory) -> str:
    """A font with the text's characters."""
    folder = tmp_path_factory.mktemp("fonts")
    return checked_font(str(make_font(folder / "squares.ttf", "".join(sorted(set(TEXT))))))


@pytest.mark.parametrize(("side", "size"), [(224, 36), (384, 62), (100, 16)])
def test_it_lies_where_the_authors_put_it(font, side, size):
    image = torch.full((3, side, side), 100, dtype=torch.uint8)
    marked = Watermarked(identity, font)(image, 0, 0)[0].numpy()
    rows, columns = (marked > 100).nonzero()
    # Squares of 0.8 em, a pixel more or less: six of them, an em apart, 0.1 em from the left.
    assert columns.min() == pytest.approx(0.01 * side + 0.1 * size, abs=1)
    right = min(side - 1, 0.01 * side + 5.9 * size)
    assert columns.max() == pytest.approx(right, abs=1.5)
    # The text's top is where its ascender is; the squares begin 0.2 em below it.
    assert rows.min() == pytest.approx(0.4 * side + 0.2 * size, abs=1)
    assert rows.max() == pytest.approx(0.4 * side + size, abs=1.5)


@given(values=st.lists(st.integers(0, 255), min_size=3, max_size=3))
@settings(max_examples=30, deadline=None)
def test_half_of_it_is_white_and_the_rest_is_the_image(font, values):
    image = torch.tensor(values, dtype=torch.uint8)[:, None, None].expand(3, 224, 224)
    marked = Watermarked(identity, font)(image, 0, 0)
    inside = int(0.4 * 224 + 0.6 * 36), int(0.01 * 224 + 18)
    expected = np.array(values) + (255 - np.array(values)) * 128 / 255
    assert np.abs(marked[:, inside[0], inside[1]].numpy() - expected).max() <= 1
    assert torch.equal(marked[:, :80], image[:, :80])
    assert torch.equal(marked[:, 140:], image[:, 140:])


def test_a_font_without_its_characters_is_refused(tmp_path):
    half = make_font(tmp_path / "half.ttf", "径a")
    with pytest.raises(ConfigError, match=r"half.ttf: the font has no 捷; .*SourceHanSerifSC"):
        checked_font(str(half))
    (tmp_path / "text.ttf").write_text("no font")
    for path in (tmp_path / "text.ttf", tmp_path / "nowhere.ttf"):
        with pytest.raises(ConfigError, match=f"--watermark {path}: no font can be read"):
            checked_font(str(path))
