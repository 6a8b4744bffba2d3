"""What the plan says of a processor."""

import pytest

from rebias_dist.commands.dry_run import print_plan
from rebias_dist.config.files import validate
from rebias_dist.telemetry import processor

ADVICE = "it has AMX, so --precision bf16 may be 2 to 3 times as fast"


@pytest.mark.parametrize(
    ("flags", "precision", "advised"),
    [
        ("fpu amx_bf16 amx_tile amx_int8", "float32", True),
        ("fpu amx_bf16 amx_tile amx_int8", "tf32", True),
        ("fpu amx_bf16 amx_tile amx_int8", "bf16", False),
        ("fpu amx_bf16 amx_tile amx_int8", "float64", False),
        ("fpu avx512_bf16", "float32", False),
        (None, "float32", False),
    ],
)
def test_the_dry_run_names_the_faster_precision_of_a_processor_with_amx(
    small_run, tmp_path, monkeypatch, capsys, flags, precision, advised
):
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor : 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(processor, "_CPUINFO", file)
    print_plan(validate({**small_run, "precision": precision}))
    (line,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("device ")]
    assert line.split()[1] == "cpu,"
    assert "thread" in line
    assert (ADVICE in line) is advised
