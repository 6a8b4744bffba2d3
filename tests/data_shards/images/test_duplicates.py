import hashlib
import random

from data_shards.images.duplicates import DuplicateFinder


def _hash(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _brute_force(rows, value):
    groups = {}
    for number, row in enumerate(rows):
        if value(row) is not None:
            groups.setdefault(value(row), []).append(number)
    return sorted(group for group in groups.values() if len(group) > 1)


def test_groups_are_those_of_a_dictionary():
    draw = random.Random(0)
    for size in (0, 1, 2, 30, 400):
        # Equal bytes have equal pixels; some images have none.
        rows = []
        for _ in range(size):
            picture = draw.randrange(max(size // 2, 1))
            stored = draw.randrange(3)
            rows.append(None if draw.random() < 0.1 else (picture, stored))
        finder = DuplicateFinder()
        for number, row in enumerate(rows):
            hashes = ("", "") if row is None else (_hash(*row), _hash(row[0]))
            assert finder.add(*hashes) == number
        assert len(finder) == size
        assert finder.same_bytes() == _brute_force(rows, lambda row: row)
        first = {row: number for number, row in reversed(list(enumerate(rows)))}
        distinct = [row if first[row] == number else None for number, row in enumerate(rows)]
        assert finder.same_pixels() == _brute_force(distinct, lambda row: row and row[0])


def test_rows_may_be_added_after_a_question():
    finder = DuplicateFinder()
    finder.add(_hash(1), _hash("p"))
    assert finder.same_bytes() == []
    finder.add(_hash(1), _hash("p"))
    finder.add(_hash(2), _hash("p"))
    assert finder.same_bytes() == [[0, 1]]
    assert finder.same_pixels() == [[0, 2]]


def test_images_without_pixels_are_not_the_same():
    finder = DuplicateFinder()
    for number in range(3):
        finder.add(_hash(number), "")
    assert finder.same_pixels() == []
