"""Batch scripts: their content, refusals, and the verdict after the end of the ranks."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launch.slurm.verdict import judge
from rebias_dist.commands.train import parse_train
from rebias_dist.config.files import to_yaml
from tests import ROOT


def slurm(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch", "slurm", *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1000,
    )


@pytest.mark.parametrize("by", ["torchrun", "srun"])
def test_the_script_can_be_read_and_is_bash(tmp_path, by):
    limits = ["--time=2-00:00:00", "--partition=gpu,gpu2", "--account=lab_1", "--cpus-per-rank=6"]
    layout = ["--nodes=4", "--gpus-per-node=2", f"--by={by}", "--warning=300"]
    where = ["--name=first", f"--runs-dir={tmp_path / 'runs'}"]
    shown = slurm("biased_mnist/demo", *layout, *limits, *where, "--dry-run", "--", "--mem=0")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    tasks, cpus = (1, 12) if by == "torchrun" else (2, 6)
    for expected in (
        *("--nodes=4", "--gpus-per-node=2", f"--ntasks-per-node={tasks}"),
        *(f"--cpus-per-task={cpus}", "--signal=USR2@300", "--requeue", "--job-name=first"),
        *("--time=2-00:00:00", "--partition=gpu,gpu2", "--account=lab_1"),
        f"--output={tmp_path}/runs/first/logs/slurm-%j.out",
    ):
        assert f"#SBATCH {expected}" in lines
    checked = subprocess.run(["bash", "-n"], input=shown.stdout, text=True, capture_output=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    # Nothing was submitted or written.
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("by", ["torchrun", "srun"])
def test_a_change_of_a_run_is_refused_unless_overridden_key_by_key(tmp_path, by):
    folder = tmp_path / "runs/first"
    folder.mkdir(parents=True)
    demo = parse_train(["--config=biased_mnist/demo"]).config
    (folder / "config.yaml").write_text(to_yaml(demo))
    words = ["biased_mnist/demo", f"--by={by}", "--name=first", f"--runs-dir={tmp_path / 'runs'}"]
    words += ["--dry-run", "--set=optimizer.lr=0.5", "--set=seed=8"]
    for overrides in ([], ["--resume-override=seed"]):
        refused = slurm(*words, *overrides)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert "--resume-override optimizer.lr" in refused.stderr
        assert ("--resume-override seed" in refused.stderr) == (not overrides)
    both = ["--resume-override=seed", "--resume-override=optimizer.lr"]
    shown = slurm(*words, *both)
    assert shown.returncode == 0, shown.stderr
    last = shown.stdout.partition("-m launch.record.rank ")[2].splitlines()[0]
    assert shlex.split(last)[2:] == both


@pytest.mark.parametrize(
    "script", ["array.sbatch", "env.sh", "imagenet9.sh", "srun.sh", "torchrun.sh"]
)
def test_the_other_scripts_are_bash(script):
    subprocess.run(["bash", "-n", str(ROOT / "launch" / script)], check=True)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--name=x; touch y"], "name: 'x; touch y'"),
        (["--name=x\ny"], "name"),
        (["--name=../up"], "name"),
        (["--name=$(id)"], "name"),
        (["--runs-dir=runs with blanks"], "runs_dir"),
        (["--runs-dir=a;b"], "runs_dir"),
        (["--partition=gpu\n#SBATCH --wrap=id"], "--partition"),
        (["--account=$(id)"], "--account"),
        (["--time=1 2"], "--time"),
        (["--time=2:30"], "no time to train"),
        (["--time=2", "--warning=61"], "no time to train"),
        (["--env=/nowhere/env.sh"], "--env"),
        (["--nodes=0"], "--nodes: 0"),
        (["--nodes=64", "--gpus-per-node=8"], "micro_batch"),
        (["--ranks-per-node=2"], "--ranks-per-node"),
        (["--set=optimizer.lr"], "--set"),
        (["--set=name=other"], "--set"),
        (["--resume-override=$(id)"], "--resume-override"),
        (["--resume-override=optimizer.lt"], "did you mean optimizer.lr?"),
        # A key that the configuration has, since options may have any name.
        (
            ["--set", 'f.options={"x; id #": 1}', "--resume-override=f.options.x; id #"],
            "dotted name",
        ),
        (["--set=optimizer.lr=-1"], "optimizer.lr"),
        (["--", "--wrap=id"], "--wrap=id"),
        (["--", "other.sbatch"], "other.sbatch"),
        (["--", "--comment=a\nb"], "--comment"),
        (["--by=mpirun"], "--by"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(tmp_path, words, named):
    place = [] if any("runs-dir" in word for word in words) else [f"--runs-dir={tmp_path}/runs"]
    refused = slurm("biased_mnist/demo", *place, *words, PATH="/nowhere")
    assert refused.returncode == 2, refused.stderr
    assert named.encode("unicode_escape").decode() in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_slurm(tmp_path):
    said = slurm("biased_mnist/demo", f"--runs-dir={tmp_path / 'runs'}", PATH="/nowhere")
    assert said.returncode == 2
    assert "sbatch: not found" in said.stderr
    assert list((tmp_path / "runs").iterdir()) == []  # no run that list and resume do not know


@pytest.mark.parametrize(
    ("codes", "launcher", "began", "expected"),
    [
        ({0}, 0, True, 0),
        ({75}, 75, True, 75),
        ({75}, 1, True, 75),  # torchrun returns 1 for any
        ({2}, 2, False, 2),
        ({2}, 1, False, 2),
        ({3, 1}, 3, True, 3),
        ({1}, 1, True, 75),  # the run counts its failures itself
        (set(), 137, True, 75),  # killed
        ({1}, 1, False, 1),  # before it could count
        (set(), 2, False, 2),  # the script of a node refused
    ],
)
def test_the_verdict_on_a_job(codes, launcher, began, expected):
    assert judge(codes, launcher, began) == expected


# ---------------------------------------------------------------- the stages of imagenet9.sh

# This sbatch writes its words to a file, counts the jobs, and refuses the one named in REFUSED.
SBATCH = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >> "$CALLS"
for word in "$@"; do
    if [ "$word" = "--job-name=$REFUSED" ]; then
        echo "sbatch: error: invalid partition specified" >&2
        exit 1
    fi
done
wc -l < "$CALLS" | tr -d ' '
"""


def stages(
    tmp_path: Path, *words: str, refused: str = "", own: Sequence[str] = ()
) -> tuple[int, str, list[str]]:
    """Run the script with a stub of sbatch; return its exit code, stderr, and sbatch's words.

    ``words`` are for the training, ``own`` are for the script itself.
    """
    programs, calls = tmp_path / "programs", tmp_path / "calls"
    programs.mkdir()
    (programs / "sbatch").write_text(SBATCH)
    (programs / "sbatch").chmod(0o755)
    (tmp_path / "source").mkdir()
    done = subprocess.run(
        [
            *("bash", str(ROOT / "launch/imagenet9.sh"), "--source", str(tmp_path / "source")),
            *("--output", str(tmp_path / "shards"), f"--python={sys.executable}"),
            *own,
            *("--", f"--runs-dir={tmp_path / 'runs'}", "--name=a", *words),
        ],
        env={
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "CALLS": str(calls),
            "REFUSED": refused,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1000,
    )
    called = calls.read_text().splitlines() if calls.exists() else []
    return done.returncode, done.stderr, called


@pytest.mark.parametrize("stage", ["convert", "merge-selection", "verify"])
def test_a_stage_that_is_refused_is_the_last(tmp_path, stage):
    code, said, calls = stages(tmp_path, refused=stage)
    assert code == 2, said
    assert said.splitlines()[-1].startswith(f"imagenet9.sh: error: {stage}: sbatch submitted no")
    assert f"--job-name={stage} " in calls[-1]


@pytest.mark.parametrize("words", [[], ["--nodes=2", "--", "--mem=0"]])
def test_every_stage_waits_for_the_one_before_it(tmp_path, words):
    code, said, calls = stages(tmp_path, *words)
    assert (code, len(calls)) == (0, 6), said
    for number, call in enumerate(calls[1:], 1):
        assert f"--dependency=afterok:{number} " in call
    assert "--dependency" not in calls[0]
    assert ("--mem=0" in calls[-1].split()) == bool(words)
    assert "--" not in calls[-1].split()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--nodes=2", "--gpus-per-node=8"], "too few for 16 ranks"),
        (["--set=optimizer.lt=1"], "did you mean --optimizer.lr?"),
        (["--time=1"], "no time to train"),
        (["--", "--wrap=id"], "'--wrap=id' is set by the script"),
    ],
)
def test_a_training_that_is_refused_submits_no_stage(tmp_path, words, named):
    code, said, calls = stages(tmp_path, *words)
    assert (code, calls) == (2, []), said
    assert named in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["programs", "source"]


def test_more_ranks_with_a_configuration_for_them(tmp_path):
    words = ["--nodes=2", "--gpus-per-node=8"]
    code, said, calls = stages(tmp_path, *words, own=["--train=imagenet9/rebias_n256"])
    assert (code, len(calls)) == (0, 6), said


@pytest.mark.parametrize("words", [["--max-corrupt=3"], ["--max-corrupt", "3"]])
def test_limits_reach_the_stages_that_they_are_for(tmp_path, words):
    """Without them one dead address or one damaged image would cancel all later stages."""
    (tmp_path / "list").touch()
    own = [f"--gather={tmp_path / 'list'}", "--max-failed=0.3", "--convert=--resize=64"]
    code, said, calls = stages(tmp_path, own=[*own, *(f"--convert={word}" for word in words)])
    assert code == 0, said
    assert sum("data_shards gather" in c and "--max-failed 0.3" in c for c in calls) == 1
    given = {c.split("data_shards ")[1].split()[0] for c in calls if " ".join(words) in c}
    assert given == {"convert", "merge"}
    assert sum("--resize" in call for call in calls) == 1
