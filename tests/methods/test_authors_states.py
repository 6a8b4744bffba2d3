"""Tables, weights and counts against those of the authors' codes."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from rebias_dist.config.files import validate
from rebias_dist.data.sampling import draws_of
from rebias_dist.methods import group_dro, jtt, lff
from tests.methods import test_authors_values
from tests.methods.authors import CASES, cases_of, check, inputs, pool, relative

CHECKED: set[str] = set()
cases = partial(cases_of, CHECKED)


@pytest.mark.parametrize("case", cases("biascon_sampling"))
def test_sampling_weights(case):
    labels, bias = (x.numpy() for x in inputs(case, "yt", "bt"))
    weights = weights_of(labels, bias, CASES[case]["parameters"]["ratio"])
    value, state = CASES[case]["value"], CASES[case]["state"]
    assert relative(weights[:60], state["clipped_weights_first_60"]) < 1e-12
    assert float(weights.sum()) == pytest.approx(value["sum_clipped"], rel=1e-12)
    free = weights_of(labels, bias, 1e12)
    assert float(free.sum()) == pytest.approx(value["sum_unclipped"], rel=1e-12)
    assert float(weights.max()) == pytest.approx(state["clip_level"], rel=1e-12)
    assert int((free > weights * (1 + 1e-12)).sum()) == state["number_clipped"]


def weights_of(labels, bias, ratio):
    """The chance of each sample, from that of its group."""
    data = validate({"data": {"sampling": f"bias_conflicting:{ratio}"}}).data
    draws = draws_of(data, labels, bias, [str(i) for i in range(labels.max() + 1)])
    weights = torch.zeros(len(labels), dtype=torch.float64)
    weights[draws.members] = torch.from_numpy(np.repeat(draws.weights / draws.sizes, draws.sizes))
    return weights


@pytest.mark.parametrize("case", cases("lff_gce"))
def test_gce(case):
    logits, labels = inputs(case, "Lb", "y")
    each = lff.gce(logits, labels, CASES[case]["parameters"]["q"])
    assert relative(each, CASES[case]["state"]["per_sample"]) < 1e-10
    check(case, each.mean(), logits=logits)


@pytest.mark.parametrize("case", cases("lff_three"))
def test_lff_over_three_steps(case):
    ids, labels = inputs(case, "ids", "ye")
    state = CASES[case]["state"]
    tables = [lff.empty_table(40, torch.float64) for _ in range(2)]
    for step, expected in enumerate(state["steps"]):
        mine = labels[ids[step]]
        logits = [pool()[name][step].clone().requires_grad_() for name in ("LB3", "LD3")]
        losses = [cross_entropy(x, mine, reduction="none") for x in logits]
        before = [table.losses.clone() for table in tables]
        for place, (table, loss) in enumerate(zip(tables, losses, strict=True)):
            tables[place] = lff.update_table(table, ids[step], loss)
            assert torch.equal(table.losses, before[place]), "the argument was changed"
        weights = lff.sample_weights(*tables, ids[step], labels, 5)
        assert relative(weights, expected["weights"]) < 1e-12
        first, second = lff.gce(logits[0], mine).mean(), (weights * losses[1]).mean()
        assert relative(first, expected["gce_mean"]) < 1e-10
        assert relative(second, expected["weighted_ce_mean"]) < 1e-10
        assert relative(first + second, expected["total"]) < 1e-10
        for gradient, name in zip(torch.autograd.grad(first + second, logits), "bd", strict=True):
            assert relative(gradient, expected[f"gradient_logits_{name}"]) < 1e-8
    for table, name in zip(tables, "bd", strict=True):
        assert relative(table.losses, state[f"table_{name}"]) < 1e-12
        assert relative(lff.class_maxima(table, labels, 5), state[f"class_max_{name}"]) < 1e-12
        assert table.seen.tolist() == [bool(seen) for seen in state["seen"]]


@pytest.mark.parametrize("case", cases("groupdro"))
def test_group_dro_over_three_steps(case):
    groups, labels, logits, sizes = inputs(case, "g", "gy", "GL", "ng")
    parameters = CASES[case]["parameters"]
    constants = torch.tensor(parameters["C_per_group"], dtype=torch.float64)
    q = torch.full((4,), 0.25, dtype=torch.float64)
    for step, expected in enumerate(CASES[case]["state"]["steps"]):
        leaf = logits[step].detach().requires_grad_()
        losses = cross_entropy(leaf, labels[step], reduction="none")
        of_groups, counts = group_dro.group_losses(losses, groups[step], 4)
        adjusted = group_dro.adjusted_losses(
            of_groups, sizes.detach(), constants, normalised=parameters["normalize_loss"]
        )
        q = group_dro.update_weights(q, adjusted, step_size=parameters["step_size"])
        assert relative(q, expected["group_weights_q"]) < 1e-12
        value = (group_dro.sample_weights(q, groups[step], counts) * losses).sum()
        # Their value has the adjustment in it, their gradient has not.
        added = constants / sizes.detach().sqrt() * bool((constants > 0).all())
        assert relative(value + q @ added, expected["value"]) < 1e-10
        (gradient,) = torch.autograd.grad(value, leaf)
        assert relative(gradient, expected["gradient_logits"]) < 1e-8


@pytest.mark.parametrize("case", cases("jtt"))
def test_jtt(case):
    first, logits, labels = inputs(case, "LJ", "Lb", "y")
    parameters, state = CASES[case]["parameters"], CASES[case]["state"]
    errors = first.argmax(1) != labels
    assert errors.nonzero().flatten().tolist() == state["error_set"]
    weights, total = jtt.sample_weights(errors, parameters["up_weight_argument"])
    assert weights.tolist() == state["copies_per_sample"]
    assert total == state["dataset_length"]
    losses = cross_entropy(logits, labels, reduction="none")
    check(case, (weights * losses).sum() / total, logits=logits)


def test_every_case_of_the_file_is_compared():
    assert set(CASES) == CHECKED | test_authors_values.CHECKED
