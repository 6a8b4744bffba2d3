"""ImageNet-C: the means over corruptions and severities, and what is not of it."""

import pytest

from rebias_dist.evaluation.corruptions import BENCHMARK, corruption_figures


def split(name: str, accuracy: float) -> dict:
    return {"split": name, "networks": {"f": {"accuracy": accuracy}}}


def test_means_are_over_severities_then_over_corruptions():
    splits = {
        f"{name}-{s}": split(f"{name}-{s}", (number + s) / 100)
        for number, name in enumerate(BENCHMARK)
        for s in range(1, 6)
    }
    extra = {"spatter-1": split("spatter-1", 0.9), "val": split("val", 1.0)}
    other = {"shards/fog-9": split("fog-9", 0.0), "mine-3": split("mine-3", 0.0)}
    (found,) = corruption_figures({**splits, **extra, **other}).values()
    assert found["splits"] == 75
    assert found["mean"] == pytest.approx((7 + 3) / 100)
    assert found["severities"]["5"] == pytest.approx((7 + 5) / 100)
    assert found["corruptions"]["fog"]["mean"] == pytest.approx((9 + 3) / 100)
    assert found["corruptions"]["spatter"] == {"severities": {"1": 0.9}, "mean": 0.9}
    assert len(found["corruptions"]) == 16


def test_two_sets_do_not_overwrite_each_other():
    def placed(folder: str, name: str, accuracy: float) -> dict:
        return {**split(name, accuracy), "folder": f"{folder}/{name}"}

    one = {"fog-1": placed("a", "fog-1", 0.5), "snow-1": placed("a", "snow-1", 0.7)}
    apart = {"fog-1": placed("a", "fog-1", 0.5), "snow-1": placed("b", "snow-1", 0.7)}
    for splits in (one, apart):
        assert corruption_figures(splits)["f"]["mean"] == pytest.approx(0.6)
    # The second has a corruption that the first has not, and so no prefix of its own.
    two = {**one, "b/fog-1": placed("b", "fog-1", 0.1), "frost-1": placed("b", "frost-1", 0.3)}
    found = corruption_figures(two)
    means = {network: summary["mean"] for network, summary in found.items()}
    assert means == {"f on a": pytest.approx(0.6), "f on b": pytest.approx(0.2)}
    copies = {
        name: {**split("fog-1", accuracy), "folder": f"a/{name}"}
        for name, accuracy in (("x", 0.5), ("y", 0.1))
    }
    assert [s["mean"] for s in corruption_figures(copies).values()] == [0.5, 0.1]


def test_what_is_missing_is_in_no_mean():
    splits = {"a": split("fog-1", 0.5), "b": split("snow-1", 0.7), "c": split("fog-2", 0.1)}
    (found,) = corruption_figures(splits).values()
    assert found["splits"] == 3
    assert found["severities"] == {
        "1": pytest.approx(0.6),
        "2": pytest.approx(0.1),
        "3": None,
        "4": None,
        "5": None,
    }
    assert found["mean"] == pytest.approx((0.3 + 0.7) / 2)
    assert corruption_figures({"val": split("val", 0.5)}) == {}
    (only_extra,) = corruption_figures({"a": split("saturate-2", 0.5)}).values()
    assert (only_extra["mean"], only_extra["splits"]) == (None, 0)
