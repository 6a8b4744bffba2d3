"""Tables, weights and counts: what the authors' code leaves open, and wrong use."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from rebias_dist.errors import ConfigError
from rebias_dist.methods import (
    badd,
    bias_balance,
    group_dro,
    jtt,
    lff,
    spectral_decoupling,
)


def test_a_sample_twice_in_a_batch_of_lff_is_one_visit_with_the_mean():
    table = lff.Table(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([True, False, False]))
    found = lff.update_table(table, torch.tensor([0, 1, 0, 1]), torch.tensor([1.0, 4.0, 3.0, 6.0]))
    assert found.losses.tolist() == pytest.approx([0.7 * 2 + 0.3 * 2, 5, 0])
    assert found.seen.tolist() == [True, True, False]
    assert table.losses.tolist() == [2, 0, 0]


def test_the_table_of_lff_does_not_depend_on_the_order_of_the_batch():
    draw = torch.Generator().manual_seed(0)
    ids, losses = torch.randperm(40, generator=draw)[:16], torch.rand(16, generator=draw)
    table = lff.update_table(lff.empty_table(40), ids, losses)
    order = torch.randperm(16, generator=draw)
    again = lff.update_table(lff.empty_table(40), ids[order], losses[order])
    assert torch.equal(table.losses, again.losses)
    assert torch.equal(table.losses[ids], losses)


def test_the_largest_of_a_class_can_go_down_and_may_be_zero():
    labels = torch.tensor([0, 0, 1, 3])
    table = lff.update_table(lff.empty_table(4), torch.tensor([0]), torch.tensor([5.0]))
    assert lff.class_maxima(table, labels, 4).tolist() == [5, 0, 0, 0]
    table = lff.update_table(table, torch.tensor([0]), torch.tensor([1.0]))
    assert lff.class_maxima(table, labels, 4).tolist() == pytest.approx([3.8, 0, 0, 0])
    weights = lff.sample_weights(table, table, torch.tensor([0, 2]), labels, 4)
    assert weights.tolist() == pytest.approx([0.5, 0])


def test_gce_of_a_sample_that_is_surely_right_is_finite():
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    value = lff.gce(logits, torch.tensor([0, 0]))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_biasbal_refuses_a_bias_value_that_the_training_set_lacks():
    counts = bias_balance.count_pairs(torch.tensor([0, 1, 1]), torch.tensor([0, 2, 0]), 2, 4)
    assert counts.tolist() == [[1, 1], [0, 0], [0, 1], [0, 0]]
    with pytest.raises(ConfigError, match=r"\[1, 3\]"):
        bias_balance.log_prior(counts)


@pytest.mark.parametrize(("labels", "bias"), [([0, 2], [0, 0]), ([0, 1], [0, -1])])
def test_labels_out_of_range_are_refused(labels, bias):
    with pytest.raises(ConfigError, match="must be from 0 to 1"):
        bias_balance.count_pairs(torch.tensor(labels), torch.tensor(bias), 2, 2)


@pytest.mark.parametrize(("errors", "said"), [([False] * 3, "no training"), ([True] * 3, "all tr")])
def test_jtt_refuses_an_error_set_without_any_or_with_all(errors, said):
    with pytest.raises(ConfigError, match=said):
        jtt.sample_weights(torch.tensor(errors), 4)
    with pytest.raises(ConfigError, match=said):
        jtt.automatic_up_weight(torch.tensor(errors))


@pytest.mark.parametrize(
    ("count", "expected"), [(1, 8), (2, 3), (3, 1), (4, 0), (5, 0), (6, 0), (9, 0)]
)
def test_automatic_weight_of_jtt(count, expected):
    errors = torch.arange(10) < count
    assert jtt.automatic_up_weight(errors) == expected
    weights, total = jtt.sample_weights(errors, -1)
    assert float(weights.sum()) == total == 10 + expected * count
    with pytest.raises(ConfigError, match="-2"):
        jtt.sample_weights(errors, -2)


def test_group_dro_with_one_group_of_the_batch_is_its_mean():
    losses, groups = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1, 1, 1])
    found, counts = group_dro.group_losses(losses, groups, 3)
    assert found.tolist() == [0, 3, 0]
    assert counts.tolist() == [0, 3, 0]
    q = group_dro.update_weights(torch.full((3,), 1 / 3), found, step_size=1.0)
    weights = group_dro.sample_weights(q, groups, counts)
    assert float((weights * losses).sum()) == pytest.approx(float(q[1] * 3))
    assert float(q.sum()) == pytest.approx(1)


def test_badd_refuses_features_of_another_width():
    with pytest.raises(ValueError, match=r"\(2, 3\) of the model and \(2, 4\)"):
        badd.biased_features(torch.zeros(2, 3), [torch.zeros(2, 4)])


def test_spectral_decoupling_of_large_logits_and_of_one_class_is_finite():
    logits = torch.tensor([-500.0, 300.0], requires_grad=True)
    labels = torch.tensor([1, 1])
    for form in ("plain", "urw", "spw1", "spw2", "spw3"):
        weights = spectral_decoupling.class_weights(labels)
        losses, penalties = spectral_decoupling.binary_terms(
            logits, labels, weights, form=form, ratio=3.0
        )
        value = losses.mean() + 0.1 * penalties.mean()
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite(), form
        assert gradient.isfinite().all(), form
    assert spectral_decoupling.term_weights(0.1, 0, 0) == (0.1, 0.1)


def test_two_logits_and_one_have_the_same_log_loss():
    z, labels = torch.randn(9, dtype=torch.float64), torch.randint(0, 2, (9,))
    both = torch.stack([torch.zeros_like(z), z], 1)
    torch.testing.assert_close(
        spectral_decoupling.binary_log_loss(z, labels),
        cross_entropy(both, labels, reduction="none"),
    )
