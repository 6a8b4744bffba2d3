import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.__main__ import cli
from data_shards.gather.addresses import is_public
from data_shards.gather.schedule import Schedule
from data_shards.gather.urls import Task, read_list
from data_shards.sources.datasets import dataset
from data_shards.sources.imagenet import listings
from tests.data_shards.gather.misbehaving_server import photograph, serve
from tests.data_shards.tiny import tree

WNIDS = ("n01641577", "n02085620")
QUICK = [
    "--connect-timeout", "10", "--read-timeout", "20", "--timeout", "40", "--attempts", "2",
    "--backoff", "0.05", "--delay", "0", "--per-host", "16", "--max-bytes", "1000000",
    "--allow-private",
]  # fmt: skip


@pytest.fixture
def server():
    with serve() as running:
        yield running


def _write_list(path, urls):
    lines = [f"{WNIDS[number % 2]} {url}" for number, url in enumerate(urls)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _gather(capsys, folder, urls, *arguments):
    """Return the exit code, the summary and, by URL, the records of the journal."""
    listed = _write_list(folder / "urls.txt", urls)
    command = ["gather", str(listed), "--output", str(folder / "out"), "--json", *QUICK]
    code = cli([*command, *arguments])
    shown = capsys.readouterr()
    assert code in (0, 1), shown.err
    lines = (folder / "out" / "gather.jsonl").read_text().splitlines()[1:]
    records = {record["url"]: record for record in map(json.loads, lines)}
    return code, json.loads(shown.out.splitlines()[-1]), records


def _images(output):
    return {name: data for name, data in tree(output).items() if "/" in name}


GOOD = ["image/1.jpg", "odd-type/2.html", "png/3.jpg", "moved/4"]
AFTER_A_SECOND_TRY = ["error-once/5", "too-many-once/6", "reset-once/7", "truncated-once/8"]
BAD = {
    "stall": ("unreachable", "read-timeout"),
    "stall-in-body/9": ("unreachable", "read-timeout"),
    "drip/10": ("unreachable", "timeout"),
    "drip-headers": ("unreachable", "timeout"),
    "reset": ("unreachable", "disconnected"),
    "hang-up": ("unreachable", "disconnected"),
    "no-http": ("unreachable", "protocol"),
    "wrong-length/11": ("unreachable", "incomplete"),
    "endless": ("failed", "too-large"),
    "announced-huge": ("failed", "too-large"),
    "missing": ("failed", "http-404"),
    "page": ("failed", "not-an-image"),
    "empty": ("failed", "empty"),
    "loop/": ("failed", "redirects"),
    "to-file": ("failed", "redirect-scheme"),
    "to-nowhere": ("failed", "redirect-malformed"),
    "truncated/12": ("failed", None),
    "gzip-bomb": ("failed", "content-encoding"),
    "bare-bomb": ("failed", "not-an-image"),
    "pixel-bomb": ("failed", "too-large"),
}


def test_every_way_to_misbehave_is_named_and_the_rest_is_kept(server, tmp_path, capsys):
    paths = [*GOOD, *AFTER_A_SECOND_TRY, *BAD]
    urls = [server.url(path) for path in paths]
    short = ["--read-timeout", "1", "--timeout", "2.5"]
    code, summary, records = _gather(capsys, tmp_path, urls, *short)
    assert code == 1
    found = {path: records[url] for path, url in zip(paths, urls, strict=True)}
    assert {path: found[path]["state"] for path in paths} == {
        **dict.fromkeys([*GOOD, *AFTER_A_SECOND_TRY], "kept"),
        **{path: state for path, (state, _) in BAD.items()},
    }
    for path, (_, reason) in BAD.items():
        assert reason is None or found[path]["reasons"] == [reason], path

    output = tmp_path / "out"
    assert len(_images(output)) == len(GOOD + AFTER_A_SECOND_TRY)
    for path in [*GOOD, *AFTER_A_SECOND_TRY]:
        record = found[path]
        content = (output / record["path"]).read_bytes()
        extension = "png" if path.startswith("png") else "jpg"
        assert record["path"].startswith(f"train/{record['wnid']}/")
        assert record["path"].endswith(f".{extension}")
        if extension == "jpg":
            assert content == photograph(int("".join(c for c in path if c.isdigit())))

    with (output / "failures.csv").open(newline="") as file:
        listed = {row["url"]: (row["state"], row["reasons"]) for row in csv.DictReader(file)}
    assert listed == {
        records[url]["url"]: (records[url]["state"], " ".join(records[url]["reasons"]))
        for path, url in zip(paths, urls, strict=True)
        if path in BAD
    }
    assert summary["failed"] + summary["unreachable"] == len(BAD)
    assert not (output / ".partial").exists()

    # Again: nothing that is done is asked for, only what could not be reached.
    before = Counter(server.requests)
    _gather(capsys, tmp_path, urls, *short)
    asked = {path.split("/")[0] for path in server.requests - before}
    assert asked == {p.split("/")[0] for p, (state, _) in BAD.items() if state == "unreachable"}


def test_as_many_as_one_allows_may_fail(server, tmp_path, capsys):
    paths = ["image/1.jpg", "image/2.jpg", "image/3.jpg", "missing"]
    urls = [server.url(path) for path in paths]
    told = {
        limit: _gather(capsys, tmp_path, urls, "--max-failed", limit)[:2]
        for limit in ("0", "1", "0.24", "0.25")
    }
    assert {limit: code for limit, (code, _) in told.items()} == {
        "0": 1, "1": 0, "0.24": 1, "0.25": 0,
    }  # fmt: skip
    assert all(summary["failed"] == 1 for _, summary in told.values())
    listed = str(tmp_path / "urls.txt")
    command = ["gather", listed, "--output", str(tmp_path / "out"), "--max-failed", "few"]
    assert cli(command) == 2
    assert "--max-failed few: must be a number or a fraction" in capsys.readouterr().err


def test_without_allow_private_no_loopback_address_is_connected(server, tmp_path, capsys):
    hosts = ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0.0.0.0"]
    urls = [server.url("image/1.jpg", host) for host in hosts]
    listed = _write_list(tmp_path / "urls.txt", urls)
    command = ["gather", str(listed), "--output", str(tmp_path / "out"), "--attempts", "1"]
    assert cli([*command, "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    reasons = {line["path"]: line["reasons"] for line in lines[:-1]}
    assert reasons[urls[0]] == reasons[urls[1]] == reasons[urls[4]] == ["not-public"]
    assert len(reasons) == len(urls)
    assert not server.requests


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("64:ff9b::8.8.8.8", True),
        ("127.0.0.1", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False),
        ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("::", False),
        ("fe80::1%eth0", False), ("fc00::1", False), ("ff02::1", False),
        ("::ffff:127.0.0.1", False), ("64:ff9b::10.0.0.1", False), ("2002:7f00:1::", False),
    ],
)  # fmt: skip
def test_public_addresses(address, public):
    assert is_public(address) == public


def test_a_host_gets_few_requests_and_the_pause_it_asks_for(server, tmp_path, capsys):
    urls = [server.url(f"slow-image/{n}.jpg") for n in range(12)]
    code, _, _ = _gather(capsys, tmp_path, urls, "--per-host", "2", "--delay", "0.02")
    assert code == 0
    assert server.most_running <= 2
    server.starts.clear()
    urls = [server.url("too-many-once/100"), *(server.url(f"image/{n}.jpg") for n in range(20, 25))]
    code, _, _ = _gather(capsys, tmp_path, urls, "--per-host", "1", "--attempts", "3")
    assert code == 0
    # The server said 1 s: after its 429 nothing of that host begins before.
    assert server.starts[1] - server.starts[0] >= 0.95


def test_a_host_that_asks_for_a_day_is_left_to_the_next_run(server, tmp_path, capsys):
    urls = [server.url("unavailable-for-long"), *(server.url(f"image/{n}.jpg") for n in range(9))]
    _, summary, _ = _gather(capsys, tmp_path, urls, "--per-host", "1")
    assert summary["reasons"] == {"http-503": 1, "host-http-503": 9}
    assert server.requests.total() == 1


def test_a_dead_host_is_left_to_the_next_run(tmp_path, capsys):
    with serve() as server:
        port = server.port
    urls = [f"http://127.0.0.1:{port}/image/{n}.jpg" for n in range(60)]
    code, summary, records = _gather(capsys, tmp_path, urls, "--per-host", "1", "--backoff", "5")
    assert code == 1
    assert summary["reasons"] == {"host-connect": 60}
    assert {record["state"] for record in records.values()} == {"unreachable"}


def test_val_fraction_depends_on_the_url_alone(server, tmp_path, capsys):
    urls = [server.url(f"image/{n}.jpg") for n in range(40)]
    _, summary, first = _gather(capsys, tmp_path, urls, "--val-fraction", "0.3")
    assert summary["kept"]["train"] + summary["kept"]["val"] == 40
    assert 3 <= summary["kept"]["val"] <= 22
    (tmp_path / "b").mkdir()
    _, _, second = _gather(capsys, tmp_path / "b", urls[::-2], "--val-fraction", "0.3")
    for url, record in second.items():
        assert record["path"].split("/")[0] == first[url]["path"].split("/")[0]

    listed = str(tmp_path / "urls.txt")
    assert cli(["gather", listed, "--output", str(tmp_path / "out"), *QUICK]) == 2
    shown = capsys.readouterr().err
    assert "--val-fraction" in shown
    assert shown.count("\n") == 1


def test_the_same_picture_from_several_addresses_is_reported(server, tmp_path, capsys):
    urls = [server.url(f"placeholder/{n}") for n in range(3)] + [server.url("image/1.jpg")]
    code, summary, _ = _gather(capsys, tmp_path, urls)
    assert code == 0
    assert summary["duplicate"] == 3


def _process(folder, listed, *arguments, **options):
    return subprocess.Popen(
        [
            sys.executable, "-m", "data_shards", "gather", str(listed),
            "--output", str(folder), *QUICK, *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )  # fmt: skip


def _wait_until(condition):
    deadline = time.monotonic() + 1000
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _fetched(out):
    # Not glob, which minds when a folder goes while it looks.
    return sum(len(files) for folder, _, files in os.walk(out) if folder.count("/n0") == 1)


def test_killed_anywhere_it_goes_on_to_the_same_result(server, tmp_path, capsys):
    count = 60
    urls = [server.url(f"slow-image/{n}.jpg") for n in range(count)] + [server.url("missing")]
    listed = _write_list(tmp_path / "urls.txt", urls)
    out, whole = tmp_path / "out", tmp_path / "whole"
    options = ["--per-host", "2", "--val-fraction", "0.2"]
    finished = []
    hows = [(1, signal.SIGKILL), (8, signal.SIGTERM), (16, signal.SIGKILL), (24, signal.SIGINT)]
    for kept, how in hows:
        process = _process(out, listed, *options)
        _wait_until(lambda kept=kept: _fetched(out) >= kept)
        process.send_signal(how)
        process.communicate()
        assert process.returncode == (-how if how == signal.SIGKILL else 130)
        journal = (out / "gather.jsonl").read_bytes()
        finished.append(journal.count(b'"kept"'))
    assert finished == sorted(finished)
    # A line that the kill cut through.
    (out / "gather.jsonl").write_bytes(journal + b'{"wnid": "n0164')
    before = Counter(server.requests)
    process = _process(out, listed, *options)
    process.communicate()
    assert process.returncode == 1
    assert (server.requests - before).total() <= count + 1 - finished[-1]

    process = _process(whole, listed, *options)
    process.communicate()
    assert _images(out) == _images(whole)
    assert (out / "failures.csv").read_bytes() == (whole / "failures.csv").read_bytes()
    assert len(_images(out)) == count


def test_two_at_once_are_refused(server, tmp_path, capsys):
    listed = _write_list(tmp_path / "urls.txt", [server.url("stall"), server.url("image/1.jpg")])
    process = _process(tmp_path / "out", listed)
    try:
        _wait_until(lambda: server.requests["stall"])
        assert cli(["gather", str(listed), "--output", str(tmp_path / "out"), *QUICK]) == 2
        assert "another process" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate()


def test_a_kept_file_that_is_gone_or_shorter_is_fetched_again(server, tmp_path, capsys):
    urls = [server.url(f"image/{n}.jpg") for n in range(3)]
    _, _, records = _gather(capsys, tmp_path, urls)
    whole = _images(tmp_path / "out")
    paths = [tmp_path / "out" / records[url]["path"] for url in urls]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    server.requests.clear()
    _gather(capsys, tmp_path, urls)
    assert server.requests == {"image/0.jpg": 1, "image/1.jpg": 1}
    assert _images(tmp_path / "out") == whole


def test_no_process_is_left_after_a_kill(server, tmp_path):
    listed = _write_list(tmp_path / "urls.txt", [server.url(f"image/{n}.jpg") for n in range(4)])
    listed.write_text(listed.read_text() + f"n01641577 {server.url('stall')}\n")
    process = _process(tmp_path / "out", listed)
    _wait_until(lambda: len(list(tmp_path.glob("out/train/*/*"))) == 4)
    children = _children(process.pid)
    process.kill()
    process.communicate()
    assert children
    _wait_until(lambda: not any(_alive(child) for child in children))


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_check_that_dies_is_repeated(server, tmp_path):
    urls = [server.url(f"slow-image/{n}.jpg") for n in range(60)]
    listed = _write_list(tmp_path / "urls.txt", urls)
    process = _process(tmp_path / "out", listed, "--per-host", "2")
    _wait_until(lambda: list(tmp_path.glob("out/train/*/*")))
    for child in _children(process.pid):
        os.kill(child, signal.SIGKILL)
    _, shown = process.communicate()
    assert process.returncode == 0, shown
    assert len(_images(tmp_path / "out")) == 60


def test_a_full_disk_leaves_nothing_half(server, tmp_path):
    urls = [server.url(f"image/{n}.jpg") for n in range(5)]
    listed = _write_list(tmp_path / "urls.txt", urls)
    out = tmp_path / "out"
    # No file may grow beyond this: a write fails in its middle, as on a full disk.
    limit = (len(photograph(0)) // 2,) * 2
    process = _process(
        out, listed, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    _, shown = process.communicate()
    assert process.returncode == 1
    assert b"Traceback" not in shown
    assert f"{out}/train/".encode() in shown
    assert not list(out.glob("train/*/*"))
    process = _process(out, listed)
    process.communicate()
    assert process.returncode == 0
    assert len(_images(out)) == 5


def test_what_was_gathered_is_a_source_of_classes(server, tmp_path, capsys):
    urls = [server.url(f"image/{n}.jpg") for n in range(12)]
    _gather(capsys, tmp_path, urls)
    (listing,) = listings(
        dataset("imagenet9"), [tmp_path / "out" / "train"], "train", selection_fraction=0.0
    )
    assert not listing.findings
    assert Counter(item.wnid for item in listing.items) == dict.fromkeys(WNIDS, 6)
    names = {item.wnid: listing.classes[item.label] for item in listing.items}
    assert names == {"n01641577": "frog", "n02085620": "dog"}


def test_lists_are_read_as_they_come(tmp_path):
    path = tmp_path / "list"
    path.write_bytes(
        b"\xef\xbb\xbfwnid,url\r\n"
        b"n01641577,http://a.example/1.jpg\r\n"
        b"n01641577_42\thttps://b.example/with space,comma.jpg\n"
        b'"n02085620","http://c.example/3.jpg"\n'
        b"\n# a comment\n"
        b"n01641577 http://a.example/1.jpg\n"
        b"../../etc http://a.example/2.jpg\n"
        b"n01641577 file:///etc/passwd\n"
        b"n01641577 http:///nowhere\n"
        b"n01641577 http://a.example:port/\n"
        b"n01641577 http://a.example/\xff\n"
        b"n01641577\n"
    )
    tasks, findings = read_list(path)
    assert tasks == [
        Task("n01641577", "http://a.example/1.jpg"),
        Task("n01641577", "https://b.example/with space,comma.jpg"),
        Task("n02085620", "http://c.example/3.jpg"),
    ]
    assert [(f.path.rsplit(":", 1)[1], f.reasons[0]) for f in findings] == [
        ("8", "class-name"), ("9", "scheme"), ("10", "scheme"), ("11", "scheme"),
        ("12", "malformed-line"), ("13", "malformed-line"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ("", [], "has no line"),
        ("n1 http://a.example/", ["--val-fraction", "1"], "--val-fraction 1.0"),
        ("n1 http://a.example/", ["--split", "../x"], "--split"),
        ("n1 http://a.example/", ["--per-host", "0"], "--per-host must be"),
        ("n1 http://a.example/", ["--timeout", "nan"], "--timeout must be"),
        (None, [], "cannot be read"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, capsys, content, arguments, words):
    if content is not None:
        (tmp_path / "list").write_text(content)
    out = tmp_path / "out"
    assert cli(["gather", str(tmp_path / "list"), "--output", str(out), *arguments]) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1
    assert not out.exists()


@settings(max_examples=200, deadline=None)
@given(
    hosts=st.lists(st.sampled_from("abc"), max_size=25),
    per_host=st.integers(1, 3),
    delay=st.sampled_from([0.0, 1.0, 2.5]),
    choices=st.randoms(use_true_random=False),
)
def test_schedule_starts_everything_once_and_never_too_much(hosts, per_host, delay, choices):
    schedule: Schedule[int] = Schedule(per_host, delay)
    not_before = {}
    for job, host in enumerate(hosts):
        not_before[job] = choices.choice([0.0, 0.0, 5.0])
        schedule.add(host, job, not_before[job])
    now = 0.0
    running: list[str] = []
    started: list[int] = []
    last: dict[str, float] = {}
    pauses: dict[str, float] = {}
    while len(started) < len(hosts) or running:
        taken = schedule.take(now)
        if taken is not None:
            host, job = taken
            assert hosts[job] == host
            assert now >= max(not_before[job], pauses.get(host, 0.0))
            assert now - last.get(host, -100.0) >= delay - 1e-9
            last[host] = now
            running.append(host)
            started.append(job)
            assert running.count(host) <= per_host
        elif running and (choices.random() < 0.7 or schedule.next_time() == float("inf")):
            host = running.pop(choices.randrange(len(running)))
            schedule.done(host)
            if choices.random() < 0.2:
                pauses[host] = now + 3
                schedule.pause(host, now + 3)
        else:
            assert now < schedule.next_time() < float("inf")
            now = schedule.next_time()
    assert sorted(started) == list(range(len(hosts)))


def test_dropped_jobs_are_returned_and_gone():
    schedule: Schedule[int] = Schedule(1, 0.0)
    for job in range(4):
        schedule.add("a", job)
    schedule.add("b", 9)
    assert schedule.take(0.0) == ("a", 0)
    assert schedule.drop("a") == [1, 2, 3]
    schedule.done("a")
    assert schedule.take(0.0) == ("b", 9)
    assert schedule.next_time() == float("inf")
