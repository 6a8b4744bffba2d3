"""A worst group that leaves out smaller groups says so in each table."""

import json

import pytest

from rebias_dist.reporting.tables import groups_table, measures_table, results_table
from rebias_dist.reporting.text import text_of
from tests.commands.test_report import compared, method, write_run

BIRDS = {"dataset": "birds", "root": "shards/birds", "test_splits": ["unbiased"]}
RULE = {"landbird": "land", "waterbird": "water"}
NOTE = "* unbiased: the worst group leaves out groups of fewer than 10 images: "


def write(folder, name, seed, few):
    """Write a run that is wrong on its ``few`` waterbirds on land and right on 90 % of the rest."""
    counts, correct = [[100, 100], [few, 200 - few]], [[90, 90], [0, round(0.9 * (200 - few))]]
    right = sum(map(sum, correct))
    of_run = {"unbiased": {"f": right}}
    values = method(name, data=BIRDS, seed=seed)
    run = write_run(folder / f"{name}{seed}", values, of_run, samples=400, classes=2)
    results = json.loads((run / "results.json").read_text())
    results |= {"classes": [*RULE], "bias": {"attribute": "place", "values": ["land", "water"]}}
    results["bias"]["aligned"] = RULE
    for checkpoint in results["checkpoints"].values():
        score = checkpoint["splits"]["unbiased"]["networks"]["f"]
        score |= {"bias_count": counts, "bias_correct": correct}
    (run / "results.json").write_text(json.dumps(results))
    return run


@pytest.mark.parametrize(
    ("few", "sizes"), [((4, 5, 6), "4 to 6"), ((5, 5, 5), "5"), ((20, 9, 20), "9")]
)
def test_the_worst_group_has_a_mark_and_a_footnote_with_names_and_sizes(tmp_path, few, sizes):
    """Also where the seeds together have more than 10 images of the group."""
    for seed, n in enumerate(few):
        write(tmp_path, "vanilla", seed, n)
        write(tmp_path, "group_dro", seed, 20)
    (runs,), _ = compared(*sorted(tmp_path.iterdir()))
    note = f"{NOTE}(waterbird, land) {sizes}"
    for table in (results_table(runs), measures_table(runs)):
        worst = next(name for name in table.body if name.endswith("worst group"))
        for name, cell in zip(table.body["method and setting"], table.body[worst], strict=True):
            number = cell.split()[0]
            assert number.endswith("*") if name == "vanilla" else number == "0.0"
        assert note in table.notes
    groups = groups_table(runs)
    assert note in groups.notes
    of_vanilla = groups.body[groups.body["method and setting"] == "vanilla"]
    assert of_vanilla["images"].tolist()[-1] == f"{sum(few)}*"
    assert of_vanilla["images"].str.contains("*", regex=False).sum() == 1
    others = groups.body[groups.body["method and setting"] != "vanilla"]
    assert not others["images"].str.contains("*", regex=False).any()
    assert text_of(runs).splitlines().count(note) == 1


def test_without_small_groups_there_is_no_mark(tmp_path):
    write(tmp_path, "vanilla", 0, 10)
    (runs,), _ = compared(tmp_path / "vanilla0")
    assert "*" not in text_of(runs)
    assert not [note for note in measures_table(runs).notes if note.startswith("*")]
