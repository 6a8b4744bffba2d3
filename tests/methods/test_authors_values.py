"""Every method against the numbers of its authors' code."""

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy, linear, normalize

from rebias_dist import methods
from rebias_dist.config.schema import MethodConfig
from rebias_dist.methods import (
    badd,
    bias_balance,
    end,
    fairkl,
    spectral_decoupling,
)
from rebias_dist.methods.base import Batch, Output
from rebias_dist.methods.biascon import biascon
from rebias_dist.methods.eps_supcon import eps_supcon
from rebias_dist.methods.eps_supinfonce import eps_supinfonce
from rebias_dist.methods.flac import flac
from rebias_dist.methods.options import LearnedMixinOptions
from rebias_dist.methods.softcon import softcon
from rebias_dist.objectives import hsic
from tests.methods.authors import CASES, cases_of, check, inputs, pool, relative, sum_differences
from tests.support.whole_batch import of_whole_batch

CHECKED: set[str] = set()
cases = partial(cases_of, CHECKED)


def contrast(case, function, views, **samples):
    """A contrastive loss of views stacked as the file has them, (N, V, d)."""
    parameters = CASES[case]["parameters"]
    given = {k: parameters[k] for k in ("temperature", "epsilon", "form") if k in parameters}
    if function is eps_supcon:
        del given["form"]
    return of_whole_batch(partial(function, **given), *views.unbind(1), **samples)


def test_inputs_have_the_sums_of_the_file():
    differences = sum_differences()
    print(f"{len(differences)} arrays, largest difference {max(differences.values()):.1e}")
    assert max(differences.values()) < 1e-12
    assert all(
        difference == 0
        for name, difference in differences.items()
        if not pool()[name].is_floating_point()
    )


@pytest.mark.parametrize("case", [*cases("biascon_t"), *cases("biascon_o"), *cases("biascon_e")])
def test_biascon(case):
    names = ("U6", "y6", "b6") if "edge" in case else ("U1" if "one" in case else "U", "y", "b")
    views, labels, bias = inputs(case, *names)
    check(case, contrast(case, biascon, views, labels=labels, bias=bias), features=views)
    if "raw_features_before_unit_normalisation" in CASES[case]["gradient"]:
        (raw,) = inputs(case, "Z")
        value = contrast(case, biascon, normalize(raw, dim=2), labels=labels, bias=bias)
        check(case, value, raw_features_before_unit_normalisation=raw)


@pytest.mark.parametrize("case", cases("softcon_two"))
def test_softcon(case):
    views, labels, h = inputs(case, "U", "y", "P")
    value = contrast(case, softcon, views, labels=labels, bias_features=h)
    check(case, value, features=views)
    if "raw_features_before_unit_normalisation" in CASES[case]["gradient"]:
        (raw,) = inputs(case, "Z")
        value = contrast(case, softcon, normalize(raw, dim=2), labels=labels, bias_features=h)
        check(case, value, raw_features_before_unit_normalisation=raw)


@pytest.mark.parametrize("case", cases("softcon_total"))
def test_softcon_with_its_cross_entropy(case):
    views, logits, labels, h = inputs(case, "U", "L", "y", "P")
    value = contrast(case, softcon, views, labels=labels, bias_features=h)
    check(case, value, "softcon")
    value = 0.01 * cross_entropy(logits, labels) + value
    check(case, value, "total", features=views, logits=logits)


def balanced(case):
    logits, labels, bias, all_labels, all_bias = inputs(case, "L", "y", "b", "yt", "bt")
    counts = bias_balance.count_pairs(all_labels, all_bias, 5, 5)
    kept = logits.detach().clone()
    changed = bias_balance.balanced_logits(logits, bias, bias_balance.log_prior(counts))
    assert torch.equal(kept, logits.detach())
    return logits, counts, cross_entropy(changed, labels)


@pytest.mark.parametrize("case", cases("biasbal"))
def test_biasbal(case):
    logits, counts, value = balanced(case)
    state = CASES[case]["state"]
    assert counts.tolist() == state["counts_bias_row_class_column"]
    prior = bias_balance.log_prior(counts).exp() - 1e-9
    assert relative(prior, state["prior_p_y_given_b"]) < 1e-12
    check(case, value, logits=logits)


@pytest.mark.parametrize("case", cases("biascon_biasbal"))
def test_biascon_with_biasbal(case):
    views, labels, bias = inputs(case, "U", "y", "b")
    logits, _, loss = balanced(case)
    check(case, loss, "cross_entropy_balanced")
    value = 0.01 * loss + contrast(case, biascon, views, labels=labels, bias=bias)
    check(case, value, "total", features=views, logits=logits)


@pytest.mark.parametrize("case", [*cases("flac_unit"), *cases("flac_raw"), *cases("flac_vb")])
def test_flac(case):
    names = ("X1", "Pu", "y") if "unit" in case else ("Z1", "P", "y")
    features, h, labels = inputs(case, *names)
    parameters = CASES[case]["parameters"]
    value = flac(
        features,
        h,
        labels,
        exponent=parameters["d"],
        normalised=parameters["normalised_inside"],
    )
    check(case, value, features=features)


@pytest.mark.parametrize("case", cases("flac_empty"))
def test_flac_without_selected_pairs(case):
    features, h, labels = inputs(case, "X1", "Py", "y")
    check(case, flac(features, h, labels, exponent=1), features=features)


@pytest.mark.parametrize("case", cases("flac_total"))
def test_flac_with_its_cross_entropy(case):
    features, h, logits, labels = inputs(case, "X1", "Pu", "L", "y")
    found, loss = flac(features, h, labels), cross_entropy(logits, labels)
    check(case, found, "flac")
    parameters = CASES[case]["parameters"]
    total = parameters["ce_weight"] * loss + parameters["alpha"] * found
    check(case, total, "total", features=features, logits=logits)


@pytest.mark.parametrize("case", cases("eps"))
def test_eps_supinfonce_and_eps_supcon(case):
    function = eps_supcon if "supcon" in case else eps_supinfonce
    views, labels = inputs(case, "U1" if "one_view" in case else "U", "y")
    check(case, contrast(case, function, views, labels=labels), features=views)


@pytest.mark.parametrize("case", cases("fairkl_kld"))
def test_fairkl(case):
    features, labels, bias = inputs(case, "X1", "y", "b")
    value = fairkl.fairkl(features, labels, bias, kld=CASES[case]["parameters"]["kld"])
    check(case, value, features=features)


@pytest.mark.parametrize("case", cases("fairkl_total"))
def test_fairkl_with_eps_supinfonce(case):
    views, raw, labels, bias = inputs(case, "U1", "Z1", "y", "b")
    parameters = CASES[case]["parameters"]
    found = contrast(case, eps_supinfonce, views, labels=labels)
    regulariser = fairkl.fairkl(normalize(raw), labels, bias, kld=parameters["kld"])
    check(case, found, "epssupinfonce")
    check(case, regulariser, "fairkl")
    alpha, weight = parameters["alpha"], parameters["lambda"]
    of_contrast, of_regulariser = fairkl.weights(alpha=alpha, weight=weight)
    total = of_contrast * found + of_regulariser * regulariser
    check(case, total, "total", projected_features=views, encoder_features_raw=raw)
    assert fairkl.weights(alpha=alpha, weight=weight, form="paper") == (alpha, weight)
    assert fairkl.weights(alpha=0.5, weight=0) == (0.5, 0)


def entangle_of_the_authors(features, labels, bias):
    """Only the pairs whose later sample has the smaller bias label, as their code has it."""
    picked = [
        (1 + (features[i] @ features[j]).clamp(-1, 1)) / 2
        for i in range(len(features))
        for j in range(i)
        if labels[i] == labels[j] and bias[i] < bias[j]
    ]
    return 1 - torch.stack(picked).mean(), len(picked)


@pytest.mark.parametrize("case", cases("end_disentangle"))
def test_end_disentangle(case):
    features, bias = inputs(case, "X1", "b")
    check(case, end.disentangle(features, bias), features=features)


@pytest.mark.parametrize("case", cases("end_entangle"))
def test_end_entangle(case):
    features, labels, bias = inputs(case, "X1", "y", "b")
    state = CASES[case]["state"]
    theirs, count = entangle_of_the_authors(features, labels, bias)
    check(case, theirs, features=features)
    assert count == state["pairs_counted"]
    ours = end.entangle(features, labels, bias)
    expected = state["value_if_both_orders_counted_own_formula"]
    assert relative(ours, expected) < 1e-10
    # Their formula on the batch and on its reverse has each pair once.
    reverse, other = entangle_of_the_authors(*(x.flip(0) for x in (features, labels, bias)))
    assert count + other == state["pairs_if_both_orders_counted"]
    torch.testing.assert_close(ours, (count * theirs + other * reverse) / (count + other))


@pytest.mark.parametrize("case", cases("end_total"))
def test_end_with_the_entangle_term_of_the_authors(case):
    """Their totals need their order-dependent term; the order-free one does not change."""
    names = ("Z1" if "pattern_norm" in case else "X1", "y", "b")
    leaf, labels, bias = inputs(case, *names)
    features = normalize(leaf) if "pattern_norm" in case else leaf
    parameters = CASES[case]["parameters"]
    ours = end.entangle(features, labels, bias)
    if "reversed" in case:
        leaf = features = features.detach().flip(0).requires_grad_()
        labels, bias = labels.flip(0), bias.flip(0)
        torch.testing.assert_close(end.entangle(features, labels, bias), ours)
    theirs, _ = entangle_of_the_authors(features, labels, bias)
    total = parameters["alpha"] * end.disentangle(features, bias) + parameters["beta"] * theirs
    name = "raw_features" if "pattern_norm" in case else "features"
    check(case, total, **{name: leaf})


@pytest.mark.parametrize("case", cases("badd"))
def test_badd(case):
    features, weight, bias, labels = inputs(case, "Z1", "Wf", "cf", "y")
    others = inputs(case, *(["F1", "F2"] if "two" in case else ["F1"]))
    changed = badd.biased_features(features, others, m=CASES[case]["parameters"]["m"])
    logits = linear(changed, weight, bias)
    assert relative(logits, CASES[case]["state"]["logits"]) < 1e-10
    value = cross_entropy(logits, labels)
    check(case, value, features=features, head_weight=weight, head_bias=bias)
    assert torch.autograd.grad(value, others, allow_unused=True) == (None,) * len(others)


@pytest.mark.parametrize("case", cases("sd_cmnist"))
def test_spectral_decoupling_and_its_annealing(case):
    logits, labels = inputs(case, "s", "yb")
    c = CASES[case]["parameters"]["sd_coef"]
    step = 449 if "before" in case else 450
    of_loss, of_penalty = spectral_decoupling.term_weights(c, step, 450)
    loss = spectral_decoupling.binary_log_loss(logits[:, 0], labels).mean()
    penalty = spectral_decoupling.squared_logits(logits).mean()
    check(case, of_loss * loss + of_penalty * penalty, logit=logits)
    if "before" in case:
        losses, penalties = spectral_decoupling.binary_terms(logits[:, 0], labels, None)
        check(case, losses.mean() + c * penalties.mean(), logit=logits)


@pytest.mark.parametrize("case", cases("sd_table2"))
def test_spectral_decoupling_of_the_table(case):
    logits, labels = inputs(case, "s", "yb")
    parameters = CASES[case]["parameters"]
    losses, penalties = spectral_decoupling.binary_terms(
        logits[:, 0],
        labels,
        spectral_decoupling.class_weights(labels),
        form=parameters["mode"],
        ratio=parameters["ratio"],
    )
    value = losses.mean() + parameters["sp"] * penalties.mean()
    check(case, value, logit=logits)


@pytest.mark.parametrize("case", cases("sd_multiclass"))
def test_spectral_decoupling_of_several_classes(case):
    logits, labels = inputs(case, "L", "y")
    penalty = spectral_decoupling.squared_logits(logits).mean()
    value = cross_entropy(logits, labels) + CASES[case]["parameters"]["coef"] * penalty
    check(case, value, logits=logits)


@pytest.mark.parametrize("case", cases("rubi"))
def test_rubi(case):
    logits, features, labels, weight, bias = inputs(case, "L", "P", "y", "Wr", "cr")
    method = methods.build(MethodConfig(name="rubi"))
    heads = method.heads(7, [6], 5)
    heads.c[0].weight, heads.c[0].bias = (torch.nn.Parameter(x) for x in (weight, bias))
    g = Output(logits, features)
    terms = method.f_terms(Output(logits, features), [g], Batch(labels, labels, labels), heads)
    question = CASES[case]["parameters"]["question_loss_weight"]
    value = terms["masked_ce"].mean() + question * terms["head_ce"].mean()
    check(
        case,
        value,
        f_logits=logits,
        g_features=features,
        head_weight=heads.c[0].weight,
        head_bias=heads.c[0].bias,
    )


@pytest.mark.parametrize("case", cases("learnedmixin"))
def test_learned_mixin(case):
    features, logits, others, labels = inputs(case, "Z1", "L", "Lb", "y")
    weight, bias = inputs(case, "Wl", "cl")
    method = methods.build(LearnedMixinOptions(entropy_weight=CASES[case]["parameters"]["w"]))
    heads = method.heads(7, [6], 5)
    gate = heads.gate[0]
    gate.weight, gate.bias = (torch.nn.Parameter(x) for x in (weight, bias))
    g = Output(others, features)
    terms = method.f_terms(Output(logits, features), [g], Batch(labels, labels, labels), heads)
    value = terms["mixed_ce"].mean() + terms["entropy"].mean()
    # Their gradient by g's logits is not ours: g is fixed here, as it is in their training.
    check(
        case,
        value,
        f_features=features,
        f_logits=logits,
        head_weight=gate.weight,
        head_bias=gate.bias,
    )
    assert torch.autograd.grad(value, others, allow_unused=True) == (None,)


@pytest.mark.parametrize("case", cases("hsic"))
def test_hsic(case):
    (x, y) = (0.5 * v.detach() for v in inputs(case, "Z1", "P"))
    first, second = x.requires_grad_(), y.requires_grad_()
    parameters = CASES[case]["parameters"]
    estimator = "unbiased" if "unbiased" in case else "biased"
    value = hsic(first, second, parameters["sigma_x"], parameters["sigma_y"], estimator=estimator)
    if estimator == "biased":
        # Theirs divides by (N - 1)², ours by N².
        value = value * (24 / 23) ** 2
    check(case, value, first=first, second=second)
