"""Archives read in place: Python's tarfile is the independent reader."""

import hashlib
import io
import os
import tarfile
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.errors import DataShardsError, UsageError
from data_shards.sources.archives import index_tar, printable

_FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def _tar(files, form=tarfile.GNU_FORMAT) -> bytes:
    """A tar of (name, content) pairs; a TarInfo instead of a name goes in as it is."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, content in files:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(name, str):
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def _write(path, content):
    path.write_bytes(content)
    return path


def _contents(path, index):
    whole = path.read_bytes()
    return [(m.name, whole[m.offset : m.offset + m.length]) for m in index.members]


_part = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0\n\r", exclude_categories=["Cs"]),
    min_size=1,
    max_size=120,
).filter(lambda part: part not in (".", "..") and not part.lower().endswith(".tar"))
_names = st.lists(_part, min_size=1, max_size=4).map("/".join)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(_names, st.binary(max_size=1500)), max_size=8),
    st.sampled_from(["gnu", "pax"]),
    st.booleans(),
)
def test_the_same_files_as_tarfile(tmp_path_factory, files, form, md5):
    path = tmp_path_factory.mktemp("t") / "a.tar"
    content = _tar(files, _FORMATS[form])
    path.write_bytes(content)
    index = index_tar(path, md5=md5)
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    assert [tuple(member) for member in index.members] == expected
    assert _contents(path, index) == files
    assert not index.refused
    assert index.size == len(content)
    assert index.md5 == (hashlib.md5(content).hexdigest() if md5 else None)


@pytest.mark.parametrize("form", _FORMATS)
def test_long_names_and_folders(tmp_path, form):
    name = "imagenet/" + "d" * 90 + "/" + "f" * 90 + ".JPEG"
    files = [(_special("imagenet", tarfile.DIRTYPE), b""), (name, b"1"), ("b.JPEG", b"22")]
    path = _write(tmp_path / "a.tar", _tar(files, _FORMATS[form]))
    assert _contents(path, index_tar(path)) == [(name, b"1"), ("b.JPEG", b"22")]


@pytest.mark.parametrize("md5", [False, True])
def test_tars_inside_a_tar_are_walked_in_place(tmp_path, md5):
    # More than one chunk of the hashing reader, with headers across its edges.
    big = os.urandom(5 << 20)
    inner = {w: _tar([(f"{w}_{i}.JPEG", big[: 999_999 * i]) for i in range(5)]) for w in "ab"}
    path = _write(tmp_path / "train.tar", _tar([(f"{w}.tar", inner[w]) for w in "ab"]))
    seen = []
    index = index_tar(path, md5=md5, on_bytes=seen.append)
    assert _contents(path, index) == [
        (f"{w}.tar/{w}_{i}.JPEG", big[: 999_999 * i]) for w in "ab" for i in range(5)
    ]
    assert sum(seen) == index.size == path.stat().st_size
    assert not md5 or index.md5 == hashlib.md5(path.read_bytes()).hexdigest()


def test_what_is_no_plain_file_is_refused_and_named(tmp_path):
    sparse = tarfile.TarInfo("sparse.jpg")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    sparse.size = 512
    files = [
        ("ok.jpg", b"ok"),
        (_special("hard.jpg", tarfile.LNKTYPE, "ok.jpg"), b""),
        (_special("soft.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (_special("fifo.jpg", tarfile.FIFOTYPE), b""),
        (_special("null.jpg", tarfile.CHRTYPE), b""),
        ("/etc/abs.jpg", b"x"),
        ("a/../../up.jpg", b"x"),
        (sparse, b"0\n".ljust(512, b"\0")),
        ("./dot//slash/./b.jpg", b"b"),
    ]
    path = _write(tmp_path / "a.tar", _tar(files, tarfile.PAX_FORMAT))
    index = index_tar(path)
    assert _contents(path, index) == [("ok.jpg", b"ok"), ("dot/slash/b.jpg", b"b")]
    assert {f.verdict for f in index.refused} == {"refused"}
    assert {f.path: f.reasons for f in index.refused} == {
        "hard.jpg": ("hard-link",),
        "soft.jpg": ("link",),
        "fifo.jpg": ("fifo",),
        "null.jpg": ("device",),
        "/etc/abs.jpg": ("unsafe-name",),
        "a/../../up.jpg": ("unsafe-name",),
        "sparse.jpg": ("sparse",),
    }


def test_an_old_sparse_file_is_refused_and_its_data_skipped(tmp_path):
    header = bytearray(_tar([("s.jpg", b"1234")])[:512])
    header[156:157], header[482] = b"S", 1
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    maps = bytes(504) + b"\1" + bytes(7) + bytes(512)
    data = b"1234".ljust(512, b"\0")
    path = _write(tmp_path / "a.tar", bytes(header) + maps + data + _tar([("b.jpg", b"b")]))
    index = index_tar(path)
    assert _contents(path, index) == [("b.jpg", b"b")]
    assert [f.reasons for f in index.refused] == [("sparse",)]


def test_sizes_of_more_than_8_gib(tmp_path):
    # GNU writes them in base 256, pax as a record; the file itself is full of holes.
    for form in ("gnu", "pax"):
        info = tarfile.TarInfo("big.bin")
        info.size = (8 << 30) + 5
        header = info.tobuf(_FORMATS[form])
        path = tmp_path / f"{form}.tar"
        with path.open("wb") as file:
            file.write(header)
            file.seek(-(-info.size // 512) * 512, os.SEEK_CUR)
            file.write(_tar([("after.jpg", b"after")]))
        big, after = index_tar(path).members
        assert (big.name, big.offset, big.length) == ("big.bin", len(header), info.size)
        with path.open("rb") as file:
            file.seek(after.offset)
            assert file.read(after.length) == b"after"


def test_a_cut_anywhere_is_an_error_that_names_the_archive(tmp_path):
    inner = _tar([("a.JPEG", b"x" * 700), ("b.JPEG", b"y" * 10)])
    content = _tar([("n01440764.tar", inner), ("n01443537.tar", inner)])
    marker = content.rstrip(b"\0").__len__() // 512 * 512 + 512
    path = tmp_path / "cut.tar"
    for length in [*range(0, marker + 512 * 2, 128)]:
        path.write_bytes(content[:length])
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            last = tar.getmembers()[-1]
        if length >= last.offset_data + last.size + 512:
            assert len(index_tar(path).members) == 4
            continue
        with pytest.raises(DataShardsError) as caught:
            index_tar(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_cut_tar_inside_is_named(tmp_path):
    inner = _tar([("a.JPEG", b"x" * 700)])[:1024]
    path = _write(tmp_path / "train.tar", _tar([("n01440764.tar", inner)]))
    with pytest.raises(DataShardsError, match=r"train\.tar/n01440764\.tar: is truncated"):
        index_tar(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_an_error_or_loses_no_file(tmp_path_factory, data):
    files = [("n0/a.JPEG", b"x" * 600), ("n" * 150, b"y"), ("n1/b.JPEG", b"")]
    whole = bytearray(_tar(files, data.draw(st.sampled_from(list(_FORMATS.values())[1:]))))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("t") / "a.tar"
    path.write_bytes(whole)
    try:
        index = index_tar(path)
    except DataShardsError:
        return
    assert all(0 <= m.offset <= m.offset + m.length <= len(whole) for m in index.members)
    # Changed bytes in a long name or a payload cannot be noticed here; lost files are.
    assert len(index.members) + len(index.refused) == len(files)


def test_a_header_does_not_get_memory_for_the_asking(tmp_path):
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        info = _special("x", kind)
        info.size = 40 << 30
        path = tmp_path / "a.tar"
        with path.open("wb") as file:
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.truncate((40 << 30) + 4096)
        with pytest.raises(DataShardsError, match="an extended header of"):
            index_tar(path)


def test_many_long_names_in_a_row_do_not_recurse_for_ever(tmp_path):
    header = bytearray(_tar([("n" * 150, b"")])[:1024])
    path = _write(tmp_path / "a.tar", bytes(header) * 5000 + _tar([("b.jpg", b"b")]))
    with pytest.raises(DataShardsError, match=r"a\.tar: is damaged.* an extended header"):
        index_tar(path)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        *((kind, -1024) for kind in (tarfile.GNUTYPE_SPARSE, tarfile.SYMTYPE, tarfile.XHDTYPE)),
        *((tarfile.REGTYPE, size) for size in (-1, -1024, -(10**9))),
    ],
)
def test_a_negative_size_leads_nowhere(tmp_path, kind, size):
    info = _special("b.jpg", kind)
    info.size = size
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    # The size of an old sparse file without its holes; tarfile goes by both.
    header[483:495] = b"00000001000\0"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    path = _write(tmp_path / "a.tar", _tar([("a.jpg", b"")])[:512] + bytes(header) + bytes(1024))
    with pytest.raises(DataShardsError, match=r"a\.tar: is damaged"):
        index_tar(path)


def test_archives_joined_end_to_end_are_not_read_by_half(tmp_path):
    path = _write(tmp_path / "a.tar", _tar([("a", b"")]) + _tar([("b", b"")]))
    with pytest.raises(DataShardsError, match="data after its end marker"):
        index_tar(path)


def test_tars_nested_without_end(tmp_path):
    content = _tar([("a.jpg", b"a")])
    for _ in range(3):
        content = _tar([("t.tar", content)])
    assert [m.name for m in index_tar(_write(tmp_path / "a.tar", content)).members] == [
        "t.tar/t.tar/t.tar/a.jpg"
    ]
    deeper = index_tar(_write(tmp_path / "b.tar", _tar([("t.tar", content)])))
    assert [(f.path, f.reasons) for f in deeper.refused] == [
        ("t.tar/t.tar/t.tar/t.tar", ("nested-too-deep",))
    ]


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz", "zip"])
def test_compressed_archives_are_refused_with_the_cure(tmp_path, mode):
    path = tmp_path / f"a.tar.{mode}"
    if mode == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.jpg", b"a")
    else:
        with tarfile.open(path, f"w:{mode}"):
            pass
    with pytest.raises(UsageError, match="cannot be read in place; unpack it first") as caught:
        index_tar(path)
    assert str(path) in str(caught.value)


def test_a_fifo_or_a_device_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    for path in (tmp_path / "a.tar", "/dev/zero", tmp_path):
        with pytest.raises(DataShardsError, match="is no regular file"):
            index_tar(path)
    with pytest.raises(DataShardsError, match="No such file"):
        index_tar(tmp_path / "none.tar")


def test_odd_names_are_shown_on_one_line(tmp_path):
    info = tarfile.TarInfo(os.fsdecode(b"n0/\xff\xfe.jpg"))
    path = _write(tmp_path / "a.tar", _tar([(info, b""), ("a\nb.jpg", b"")]))
    names = [m.name for m in index_tar(path).members]
    assert [os.fsencode(name) for name in names] == [b"n0/\xff\xfe.jpg", b"a\nb.jpg"]
    assert [printable(name) for name in names] == [r"n0/\xff\xfe.jpg", r"a\x0ab.jpg"]
    assert printable("grün.jpg") == "grün.jpg"
