"""The exit codes that ranks leave in files."""

from launch.record.exit_codes import read_codes


def test_what_a_killed_rank_leaves_is_no_code(tmp_path):
    for name, text in {"0": "75\n", "1": "", "unplaced": "2\n", "2.ab12.tmp": "0\n"}.items():
        (tmp_path / name).write_text(text)
    assert read_codes(tmp_path) == {"0": 75, "unplaced": 2}
