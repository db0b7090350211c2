from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from streamline.errors import AssetError, ConfigError, UnknownNameError
from streamline.run.cell import expand
from streamline.run.checks.merge import merge
from streamline.run.config import RunConfig, build_config
from streamline.run.settings import settings
from streamline.training.student import Recipe

_LEAST: dict[str, Any] = {"models": "opt-1.3b", "methods": "dense"}


def test_commas_in_brackets_belong_to_a_value() -> None:
    spec = "given-layers+remove=[1, 3,4.mlp]"
    config = build_config({"models": "m", "methods": f"shortgpt, {spec} ,uidl"})
    assert config.methods == ("shortgpt", spec, "uidl")


def test_text_with_commas_becomes_values() -> None:
    config = build_config(
        {"models": "a, b", "methods": "dense,shortgpt", "sparsities": "0.1,0.25", "seeds": "0,1"}
    )
    assert config.models == ("a", "b")
    assert config.sparsities == (0.1, 0.25)
    assert config.seeds == (0, 1)
    assert config.tasks == ("commonsense",)


def test_defaults_then_suite_then_flags(tmp_path: Path) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text(
        "title: t\nmodels: opt-1.3b\nmethods: [dense]\nlimit: 7\n"
        "calibration: {n_samples: 9}\nsparsities: 0.5\n",
        encoding="utf-8",
    )
    config = build_config({"limit": 3, "calibration": {"texts": "wikitext2"}}, suite=str(suite))
    assert (config.suite, config.limit, config.sparsities) == (str(suite), 3, (0.5,))
    assert (config.calibration.n_samples, config.calibration.texts) == (9, "wikitext2")
    assert config.out == Path("out/mine")
    assert config.calibration.length == RunConfig(**_LEAST).calibration.length


def test_merge_goes_into_mappings_and_changes_nothing_given() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": [1]}
    assert merge(base, {"a": {"y": 3}, "b": [2]}) == {"a": {"x": 1, "y": 3}, "b": [2]}
    assert base == {"a": {"x": 1, "y": 2}, "b": [1]}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sparsities": "0.25,1.0"}, r"sparsities: .*less than 1 \(given: '1.0'\)"),
        ({"sparsities": "-0.1"}, r"sparsities: .*greater than or equal to 0"),
        ({"sparsities": "nan"}, r"sparsities: "),
        ({"sparsities": "many"}, r"sparsities: .*valid number.*'many'"),
        ({"sparsities": ","}, "sparsities: at least one value is needed"),
        ({"sparsities": "0.1,0.1"}, "sparsities: 0.1 given twice"),
        ({"limit": 0}, r"limit: .*greater than or equal to 1 \(given: 0\)"),
        ({"recovery": "heal"}, "recovery: .*'none', 'lora' or 'kd'"),
        ({"device": "gpu"}, r"device: .*\(given: 'gpu'\)"),
        ({"dtype": "fp8"}, "dtype: .*'float32'"),
        ({"training": {"objective": "kl"}}, "training.objective: .*'mse' or 'lm'"),
        (
            {"data_dir": "/no/such/folder"},
            "data_dir: path does not point to a directory .*/no/such/f",
        ),
        ({"sparsitys": "0.1"}, "sparsitys is not a field of a run; did you mean sparsities"),
        (
            {"per_method": {"shortgpt": {"sparsitys": "0.1"}}},
            "per_method.shortgpt.sparsitys is not a field of a run; did you mean sparsities",
        ),
        (
            {"training": {"post_train": {"epoch": 2}}},
            "training.post_train.epoch is not a field of a run; did you mean epochs",
        ),
        ({"calibration": {"sampels": 3}}, "calibration.sampels is not .* mean n_samples"),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config({**_LEAST, **flags})


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match="limit: .*; dtype: "):
        build_config({**_LEAST, "limit": -1, "dtype": "x"})


def test_models_and_methods_must_come_from_somewhere() -> None:
    with pytest.raises(ConfigError, match=r"--models and --methods not given.*--suite"):
        build_config({})
    with pytest.raises(ConfigError, match="nothing to run: --methods not given"):
        build_config({"models": "opt-1.3b"})


def test_unknown_methods_and_suites_are_refused_early() -> None:
    with pytest.raises(UnknownNameError, match="unknown method 'shortgtp'"):
        build_config({"models": "a", "methods": "shortgtp"})
    with pytest.raises(UnknownNameError, match="unknown suite 'no-such-suite'"):
        build_config(_LEAST, suite="no-such-suite")


def test_all_methods_are_written_out() -> None:
    assert {"dense", "shortgpt"} <= set(build_config({"models": "a", "methods": "all"}).methods)


def test_the_training_settings_are_a_recipe() -> None:
    config = build_config({**_LEAST, "training": {"objective": "lm", "epochs": 5}})
    assert (config.training.objective, config.training.epochs) == ("lm", 5)
    assert isinstance(config.training, Recipe)
    assert pickle.loads(pickle.dumps(config)) == config, "other processes are given it"
    assert set(type(config.training).model_fields) == set(Recipe.model_fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "kl"}, "objective\n.*'mse' or 'lm'"),
        ({"n_tokens": 0}, "n_tokens\n.*greater than or equal to 1"),
        ({"warmup": 1}, "warmup\n.*less than 1"),
        ({"learning_rate": 0}, "learning_rate\n.*greater than 0"),
        ({"token": 1}, "token\n.*not permitted"),
    ],
)
def test_a_recipe_refuses_what_cannot_be_trained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**changes)


def test_the_old_word_of_a_stage_is_refused_with_the_new_one() -> None:
    with pytest.raises(ConfigError, match="healing is not a field of a run; healing is now lora"):
        build_config({**_LEAST, "healing": {"preset": "uidl"}})
    own = {"opt-1.3b": {"healing": {"preset": "uidl"}}}
    with pytest.raises(ConfigError, match="healing cannot differ .*; healing is now lora"):
        build_config({**_LEAST, "per_model": own})


def test_every_setting_says_what_it_is_and_flags_are_of_one_field_each() -> None:
    found = settings(RunConfig)
    assert [one.path for one in found if not one.help] == []
    flags = [one.flag for one in found if one.flag]
    assert len(set(flags)) == len(flags)
    by_flag = {one.flag: one for one in found}
    assert by_flag["--train-tokens"].path == ("training", "n_tokens")
    assert by_flag["--train-tokens"].given(9) == {"training": {"n_tokens": 9}}
    assert (by_flag["--limit"].keyed, by_flag["--limit"].per_model) == (True, False)
    assert (by_flag["--dtype"].default, by_flag["--dtype"].per_model) == ("auto", True)


def test_a_second_training_takes_over_what_it_does_not_set() -> None:
    training = {"n_tokens": 1000, "epochs": 5, "post_train": {"n_tokens": 300}}
    config = build_config({**_LEAST, "training": training}).training
    first, second = config.stages()
    assert (first.objective, first.n_tokens, first.epochs) == ("mse", 1000, 5)
    assert (second.objective, second.n_tokens, second.epochs) == ("lm", 300, 1)
    assert second.batch_tokens == first.batch_tokens
    assert (second.learning_rate, second.final_learning_rate) == (1e-4, 1e-5)
    assert config.seen_tokens == 5300
    assert len(build_config(_LEAST).training.stages()) == 1
    too_many = training | {"post_train": {"n_tokens": 1001}}
    with pytest.raises(ConfigError, match="n_tokens 1001 is more than its 1000"):
        build_config({**_LEAST, "training": too_many})


def test_a_configuration_goes_through_json_unchanged() -> None:
    config = build_config({**_LEAST, "sparsities": "0.1,0.3", "recovery": "none,lora"})
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_flags_for_one_method_win_over_the_suites() -> None:
    own = {"llm-streamline-none": {"sparsities": (0.5,)}}
    config = build_config({"per_method": own}, suite="paper-table5")
    assert config.per_method["llm-streamline-none"].sparsities == (0.5,)
    assert len(config.per_method) > 1


def test_recovery_is_checked_before_anything_is_loaded() -> None:
    run = {"models": "opt-1.3b", "methods": "shortgpt", "recovery": "lora"}
    with pytest.raises(UnknownNameError, match="unknown LoRA preset 'defualt'"):
        build_config(run | {"lora": {"preset": "defualt"}})
    with pytest.raises(ConfigError, match="'matched' needs trained_parameters"):
        build_config(run | {"lora": {"preset": "matched"}})
    with pytest.raises(AssetError):
        build_config(run | {"lora": {"texts": "no-such-text"}})
    without = run | {"recovery": "none"}
    assert not build_config(without | {"lora": {"preset": "matched"}}).fine_tunes()
    with pytest.raises(UnknownNameError, match="unknown LoRA preset 'x'"):
        build_config(without | {"lora": {"preset": "x"}})


def test_a_model_may_have_methods_of_its_own() -> None:
    given = {"models": "a,b,c", "methods": "shortgpt", "sparsities": "0.25"}
    own: dict[str, Any] = {"b": {"methods": "dense"}, "c": {"methods": ["all"]}}
    config = build_config(given | {"per_model": own})
    cells = {m: [c.method for c in expand(config.for_model(m), m)] for m in config.models}
    assert cells["a"] == ["dense", "shortgpt"] and cells["b"] == ["dense"]
    assert {"sleb", "laco"} < set(cells["c"]), "all is written out"
    own["b"] = {"methods": "uidl", "per_method": {"uidl": {"sparsities": [0.5]}}}
    del own["c"]
    config = build_config(given | {"per_model": own})
    assert [c.sparsity for c in expand(config.for_model("b"), "b")] == [0.0, 0.5]
    assert config.all_methods() == ("shortgpt", "uidl"), "what Ray sends to its workers"
    with pytest.raises(UnknownNameError, match="shortgpd"):
        build_config(given | {"per_model": {"b": {"methods": "shortgpd"}}})
