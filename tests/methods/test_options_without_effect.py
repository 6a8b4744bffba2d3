"""Options that a method takes but does not use: a warning names them, and it is true."""

import pytest

from rebias_dist.commands.train import parse_train
from rebias_dist.config.files import validate
from rebias_dist.train import main
from tests.methods.test_resume import fingerprint, settings

OTHER = {
    "lambda_f": 5.0,
    "lambda_g": 5.0,
    "n_g_update": 2,
    "swap_inner_bandwidth": True,
    "hsic": "biased",
}
USED = {
    "vanilla": [],
    "biased": ["n_g_update"],
    "rubi": ["lambda_f", "n_g_update"],
    "learned_mixin": ["lambda_f"],
}


def weights(small_run: dict, method: str, options: dict) -> str:
    """Return the digest of a short run's end."""
    values = settings(small_run, method)
    values |= {"radius": {"f": 1.0, "g": 2.0}, "optimizer": {"name": "sgd"}, "max_steps": 10}
    values |= {"method": {**values["method"], **options}, "log": {"to": []}}
    name = "-".join([method, *options])
    main(validate({**values, "name": name, "evaluate": {"final": "none", "every_epochs": 3}}))
    return fingerprint(values, name)[0]


@pytest.mark.parametrize(("method", "used"), USED.items())
def test_an_option_has_an_effect_or_is_warned_of(small_run, method, used):
    idle = {key: value for key, value in OTHER.items() if key not in used}
    start = {"g_pretrain_epochs": 1} if method == "learned_mixin" else {}
    found = validate({"method": {"name": method, **OTHER, **start}}).method.without_effect
    assert found == idle
    default = weights(small_run, method, {})
    assert weights(small_run, method, idle) == default
    for key in used:
        assert weights(small_run, method, {key: OTHER[key]}) != default


def notes(*words: str) -> tuple[str, ...]:
    return parse_train(words).notes


def test_a_warning_names_the_option_and_its_value(tmp_path):
    line = "warning: method.lambda_f: vanilla does not use it, so 5.0 changes nothing; remove it"
    assert notes("--method", "vanilla", "--method.lambda_f", "5") == (line,)
    (tmp_path / "c.yaml").write_text("method: {name: vanilla, lambda_f: 5}")
    assert notes("--config", str(tmp_path / "c.yaml")) == (line,)
    several = ["--method.n_g_update", "7", "--method.hsic", "biased", "--method.lambda_g", "1"]
    assert len(notes("--method", "vanilla", *several)) == 2


def test_what_is_used_or_was_for_another_method_gives_no_warning():
    assert notes("--method.lambda_f", "5") == ()
    assert notes("--method", "rubi", "--method.lambda_f", "5") == ()
    # The default configuration has λ_f for rebias; the run keeps it, so that it can be resumed.
    assert notes("--method", "vanilla") == ()
    assert parse_train(["--method", "vanilla"]).config.method.lambda_f == 64
