"""Every override that the refusal of a resumed run advises is one that the command accepts."""

import re

import pytest
import yaml

from data_shards.sources.biased_mnist import Options, convert
from rebias_dist.commands.train import parse_train
from rebias_dist.config.files import validate
from rebias_dist.errors import ConfigError
from rebias_dist.runs.run_folder import open_run
from rebias_dist.train import main

SKIP = ["--data.on_damaged", "skip"]
OPTION, OTHER = ["--f.options", "{a: {b: 1}}"], ["--f.options", "{c: 1, a: {}}"]
LFF = ["--method", "lff", "--method.q", "0.5"]
REFUSED = [
    (SKIP, []),
    (SKIP, [*SKIP, "--data.verify", "0.5"]),
    (OPTION, OTHER),
    (LFF, ["--method", "vanilla"]),
    (["--method", "jtt"], LFF),
    (["--g", "[{}, {}]"], ["--optimizer.lr", "0.5", "--f.ema", "0.9"]),
    (["--data.augment.rotation", "5"], ["--data.test_splits", "[rho0]", "--evaluate.batch", "9"]),
]


def advised(refusal: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    """Return the words of the command that a refusal advises."""
    words = str(refusal.value).partition("continue with ")[2].split()
    assert words[::2] == ["--resume-override"] * (len(words) // 2)
    assert words
    return words


@pytest.mark.parametrize(
    ("before", "after"), [*REFUSED, *((after, before) for before, after in REFUSED)]
)
def test_what_a_refusal_of_the_configuration_advises_is_accepted(tmp_path, before, after):
    place = ["--name", "a", "--runs-dir", str(tmp_path)]
    open_run(parse_train([*place, *before]).config, "auto").close()
    config = parse_train([*place, *after]).config
    with pytest.raises(ConfigError) as refusal:
        open_run(config, "auto")
    request = parse_train([*place, *after, *advised(refusal)])
    open_run(request.config, "auto", request.overrides).close()


def test_what_a_refusal_of_the_data_advises_is_accepted(small_run, few_digits, tmp_path):
    convert(tmp_path / "shards", Options(image_size=8), source=few_digits)
    values = {**small_run, "name": "a", "log": {"to": []}, "evaluate": {"final": "none"}}
    for steps, split in ((1, "unbiased"), (2, "biased")):
        tests = {"other": str(tmp_path / "shards" / split)}
        values |= {"max_steps": steps, "data": {**small_run["data"], "other_tests": tests}}
        if steps == 1:
            main(validate(values))
    with pytest.raises(ConfigError) as refusal:
        main(validate(values))
    assert advised(refusal) == ["--resume-override", "manifest.other"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    request = parse_train(["--config", str(tmp_path / "c.yaml"), *advised(refusal)])
    main(request.config, overrides=request.overrides)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optimizer.lt", "did you mean optimizer.lr?"),
        ("method.lamda_f", "did you mean method.lambda_f?"),
        ("manifest.slection", "did you mean manifest.selection?"),
        ("f.option.a", "did you mean f.options?"),
        ("epoch", "did you mean epochs?"),
    ],
)
def test_a_misspelt_override_names_the_nearest(key, hint):
    with pytest.raises(ConfigError, match=re.escape(f"--resume-override {key}: ")) as refused:
        parse_train(["--resume-override", key])
    assert str(refused.value).endswith(hint)
