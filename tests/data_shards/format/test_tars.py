"""Tars are written as others write them, and what the disk gives back is compared."""

import hashlib
import io
import tarfile
import tracemalloc
from contextlib import closing, suppress

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from data_shards.errors import DataShardsError
from data_shards.format.tars import TarStream, header, read_header


class _BadDisk(io.FileIO):
    """Flips one bit of what is written at a place."""

    place = -1

    def write(self, content):
        begin = self.tell()
        spoilt = bytearray(content)
        if begin <= self.place < begin + len(spoilt):
            spoilt[self.place - begin] ^= 4
        return super().write(spoilt)


@pytest.mark.parametrize("place", [-1, 0, 130, 700, 1024, 10 * 2**20, 12 * 2**20 + 10])
def test_what_the_disk_gives_back_is_compared(tmp_path, place):
    path = tmp_path / "a.tar"
    with _BadDisk(path, "w+") as file, closing(TarStream(file)) as tar:
        file.place = place
        if place < 0:
            assert _fill(tar) == (
                path.stat().st_size,
                hashlib.sha256(path.read_bytes()).hexdigest(),
            )
            return
        with pytest.raises(DataShardsError, match=r"a\.tar: read back .* at fault"):
            _fill(tar)


def _fill(tar):
    for key in ("a", "b", "c"):
        tar.add(key, {"jpg": key.encode() * 2**22, "cls": b"1"})
    return tar.finish()


def test_a_sample_may_be_larger_than_any_stretch(tmp_path):
    path = tmp_path / "a.tar"
    contents = {"a": b"1" * 11 * 2**20, "b": b"2" * 25 * 2**20, "c": b"3"}
    with path.open("w+b") as file, closing(TarStream(file)) as tar:
        for key, content in contents.items():
            place = tar.add(key, {"jpg": content})["jpg"]
            contents[key] = (place, content)
        size, sha256 = tar.finish()
    written = path.read_bytes()
    assert (size, sha256) == (len(written), hashlib.sha256(written).hexdigest())
    with tarfile.open(path) as tar:
        found = {m.name: (m.offset_data, tar.extractfile(m).read()) for m in tar}
    assert found == {f"{key}.jpg": content for key, content in contents.items()}


def test_the_memory_of_a_large_sample_is_given_back(tmp_path):
    with (tmp_path / "a.tar").open("w+b") as file, closing(TarStream(file)) as tar:
        tracemalloc.start()
        tar.add("large", {"jpg": bytes(40 * 2**20)})
        for number in range(20):
            tar.add(f"{number}", {"jpg": bytes(2**20)})
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert held < 20 * 2**20


@given(name=st.text(min_size=1, max_size=30), size=st.integers(0, 8**11 - 1), data=st.data())
def test_a_header_is_read_back_and_a_changed_one_noticed(name, size, data):
    name = name.replace("\0", "0").encode(errors="replace").decode()
    block = bytearray(header(name, size))
    assert len(block) == 512
    assert read_header(bytes(block)) == (name, size, True)
    block[data.draw(st.integers(0, 511))] ^= data.draw(st.integers(1, 255))
    with suppress(tarfile.HeaderError):
        assert not read_header(bytes(block))[2]


@pytest.mark.parametrize(("name", "size"), [("é" * 51, 1), ("a", 8**11)])
def test_what_fits_no_header_is_refused(name, size):
    with pytest.raises(ValueError, match=r"too long|overflow"):
        header(name, size)


def test_the_bytes_are_those_of_webdatasets_writer(tmp_path):
    samples = {"a" * 90: {"jpg": b"1" * 511, "cls": b""}, "b/1": {"png": b"2" * 2**20, "cls": b"7"}}
    with (tmp_path / "a.tar").open("w+b") as file, closing(TarStream(file)) as tar:
        for key, contents in samples.items():
            tar.add(key, contents)
        tar.finish()
    stock = io.BytesIO()
    with webdataset.TarWriter(stock, encoder=False, mtime=0) as writer:
        for key, contents in samples.items():
            writer.write({"__key__": key, **contents})
    assert (tmp_path / "a.tar").read_bytes() == stock.getvalue()
