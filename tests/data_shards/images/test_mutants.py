"""Random damage: nothing crashes or hangs, memory is bounded, no damaged image is kept."""

import io
from collections import Counter

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_shards.convert.workers import Crash, map_surviving
from data_shards.images import jpeg
from data_shards.images.examine import examine
from tests.data_shards.images.zoo import Mutant, mutants, parents, peak_memory

MB = 2**20
ODDITIES = {
    *("extraneous-bytes", "jfif-revision", "scan-parameters"),
    *("adobe-transform", "padded-scan", "broken-icc"),
}


def _strictly_decodes(content):
    try:
        simplejpeg.decode_jpeg(content)
    except ValueError:
        return False
    return True


def _pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def _judge(mutant: Mutant):
    """Return (verdict, what is wrong with it or "", peak memory in bytes)."""
    found = examine(mutant.content, mutant.parent)
    wrong = ""
    if found.verdict in ("ok", "suspect"):
        wrong = _wrongly_kept(mutant, found)
    elif found.reasons == () or found.pixels:
        wrong = "a verdict without a reason, or with pixels"
    return found.verdict, wrong, peak_memory()


def _wrongly_kept(mutant, found):
    content = mutant.content
    if found.extension == "png":
        same = np.array_equal(_pixels(content), _pixels(parents()[mutant.parent]))
        return "" if same else "a damaged PNG was kept"
    strict = _strictly_decodes(content)
    if strict:
        return "" if not ODDITIES & set(found.reasons) else "an oddity without a warning"
    if not ODDITIES & set(found.reasons):
        return "strict decoding fails, nothing is said"
    # The full decoder warns about a harmless oddity. Without it, the file must decode
    # strictly, to the pixels of a decoder that ignores warnings.
    plain, _ = jpeg.without_oddities(content, jpeg.parse(content))
    if not _strictly_decodes(plain):
        return "strict decoding fails behind the oddity"
    return "" if np.array_equal(_pixels(content), _pixels(plain)) else "an oddity moves pixels"


def _check(count, seed):
    drawn = list(mutants(count, seed))
    verdicts = Counter()
    results = map_surviving(_judge, drawn, workers=1, chunk=50, seconds=20)
    for number, (mutant, result) in enumerate(zip(drawn, results, strict=True)):
        where = f"mutant {number} of seed {seed}: {mutant.parent}, {mutant.kind}"
        assert not isinstance(result, Crash), f"{where}: {result}"
        verdict, wrong, peak = result
        assert not wrong, f"{where}: {wrong}"
        assert peak < 512 * MB, where
        verdicts[verdict] += 1
    print(dict(verdicts))
    return verdicts


def test_300_mutants():
    verdicts = _check(300, seed=1)
    # Neither is everything kept nor everything thrown away.
    assert verdicts["corrupt"] > 100
    assert verdicts["ok"] > 20


@pytest.mark.slow
def test_10000_mutants():
    verdicts = _check(10_000, seed=2)
    assert verdicts["suspect"] > 20


def test_parents_are_whole():
    for name, content in parents().items():
        assert examine(content, name).verdict == "ok"
