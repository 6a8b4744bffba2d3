"""What the plan says of a processor."""

import pytest

from rebias_dist.commands.dry_run import print_plan
from rebias_dist.config.files import validate
from rebias_dist.telemetry import processor

AMX = "it has AMX for bfloat16, so --precision bf16 may be 2 to 3 times as fast"
AVX = "it has AVX-512 for bfloat16, so --precision bf16 may be 1.2 to 2.7 times as fast"


@pytest.mark.parametrize(
    ("flags", "precision", "advised"),
    [
        ("fpu avx512_bf16 amx_bf16 amx_tile", "float32", AMX),
        ("fpu avx512_bf16 amx_bf16 amx_tile", "tf32", AMX),
        ("fpu avx512_bf16 amx_bf16 amx_tile", "bf16", None),
        ("fpu avx512_bf16 amx_bf16 amx_tile", "float64", None),
        ("fpu avx512_bf16", "float32", AVX),
        ("fpu avx512_bf16", "bf16", None),
        ("fpu avx512f", "float32", None),
        (None, "float32", None),
    ],
)
def test_the_dry_run_names_the_faster_precision_of_a_processor(
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
    assert ("bfloat16" in line) is (advised is not None)
    assert advised is None or advised in line
