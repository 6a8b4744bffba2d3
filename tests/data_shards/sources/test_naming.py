"""Keys and the selection part follow from names alone."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.sources.naming import LONGEST_KEY, key_of, selection_keys, unique_keys

_names = st.binary(min_size=1, max_size=200).map(
    lambda raw: raw.replace(b"\0", b"0").replace(b"/", b"1").decode("utf-8", "surrogateescape")
)


@settings(deadline=None)
@given(st.lists(_names, max_size=30))
def test_keys_fit_a_tar_and_differ(names):
    keys = [key_of("n02085620", name) for name in names]
    assert all(key.isascii() and 0 < len(key) <= LONGEST_KEY for key in keys)
    assert all(key.replace("_", "a").replace("-", "a").isalnum() for key in keys)
    by_key = {}
    for key, name in zip(keys, names, strict=True):
        # Equal keys come from names that differ in the extension alone.
        assert by_key.setdefault(key, name.rpartition(".")[0] or name) == (
            name.rpartition(".")[0] or name
        )
    unique = unique_keys(keys, names)
    assert len(set(unique)) == len(names)
    assert all(len(key) <= LONGEST_KEY for key in unique)


def test_keys_of_imagenet_are_the_names_of_its_files():
    assert key_of("n01440764", "n01440764_18.JPEG") == "n01440764_18"
    assert key_of("n01440764", "ILSVRC2012_val_00000293.JPEG") == "ILSVRC2012_val_00000293"
    assert key_of("n01440764", "7.png") == "n01440764_7"
    assert key_of("n01440764", "n01440764.png") == "n01440764_n01440764"
    # A name that was made to look like another's unique key is told apart all the same.
    first = unique_keys(["a", "a"], ["x", "y"])[1]
    assert len(set(unique_keys([first, "a", "a"], ["q", "x", "y"]))) == 3


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 120), min_size=1),
    st.floats(0, 0.99),
    st.integers(0, 3),
)
def test_selection_is_the_rounded_part_of_each_class(sizes, fraction, seed):
    images = [(wnid, f"{wnid}_{i}") for wnid, size in sizes.items() for i in range(size)]
    chosen = selection_keys(images, fraction, seed)
    counts = Counter(wnid for wnid, _ in chosen)
    assert counts == Counter({w: round(n * fraction) for w, n in sizes.items()})
    assert set(chosen) <= set(images)
    assert chosen == selection_keys(reversed(images), fraction, seed)
    # Each class is chosen from on its own.
    wnid = next(iter(sizes))
    alone = selection_keys([pair for pair in images if pair[0] == wnid], fraction, seed)
    assert set(alone) == {pair for pair in chosen if pair[0] == wnid}
    # A larger part holds the smaller one.
    assert set(chosen) <= set(selection_keys(images, min(1.0, fraction * 1.5), seed))


def test_one_image_more_changes_at_most_one_other():
    images = [("a", f"a_{i}") for i in range(1000)]
    before = set(selection_keys(images, 0.1, 7))
    for new in range(20):
        after = set(selection_keys([*images, ("a", f"new_{new}")], 0.1, 7))
        assert len(before - after) <= 1
        assert after - before <= {("a", f"new_{new}")} or len(after - before) == 1


def test_the_choice_is_the_same_for_ever():
    chosen = selection_keys([("a", f"a_{i}") for i in range(50)], 0.1, 0)
    assert sorted(int(key[2:]) for _, key in chosen) == [2, 4, 24, 38, 48]
