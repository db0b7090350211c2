"""What a run leaves open is decided once, with the reason, and kept."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamline.errors import AssetError, ConfigError
from streamline.files import write_json_atomic
from streamline.report.names import SETTINGS
from streamline.run.config import RunConfig, build_config
from streamline.run.deciding import choices, formats
from streamline.run.deciding.budgets import BUDGETS, stated_for
from streamline.run.deciding.decide import decided, decided_for
from streamline.run.inputs import settle, shared_inputs
from streamline.run.stage_config import AUTO
from streamline.testing.models import tiny_model

_SLIM, _WIKI = "slimpajama", "wikitext2"


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with a device, and a hub that answers or does not."""

    def machine(device: str, *, hub: bool) -> None:
        place = SimpleNamespace(type=device)
        monkeypatch.setattr(formats, "pick_device", lambda name: place)
        monkeypatch.setattr(choices, "hub_problem", lambda: None if hub else "no network")
        commit = "c" * 40 if hub else None
        monkeypatch.setattr(choices, "dataset_commit", lambda *args, **more: commit)

    return machine


def _config(tmp_path: Path, models: str = "llama2-7b", **changes: Any) -> RunConfig:
    given = {"models": models, "methods": "llm-streamline-ffn", "out": tmp_path / "run"}
    return build_config({**given, **changes})


@pytest.mark.parametrize(
    ("device", "hub", "model", "dtype", "texts", "lengths", "n_tokens"),
    [
        ("cuda", True, "llama2-7b", "float16", (_SLIM, _WIKI), (2048, 2048, 2048), 40_960_000),
        ("cuda", True, "llama3-8b", "bfloat16", (_SLIM, _WIKI), (2048, 2048, 2048), 40_960_000),
        ("cuda", True, "opt-1.3b", "float16", (_SLIM, _WIKI), (2048, 2048, 512), 1_536_000),
        ("cuda", True, "qwen2.5-3b", "bfloat16", (_SLIM, _WIKI), (2048, 2048, 512), 1_536_000),
        ("cuda", False, "llama2-7b", "float16", None, (512, 512, 512), 400_000),
        ("mps", True, "llama2-7b", "float16", (_SLIM, _WIKI), (2048, 2048, 2048), 100_000),
        ("cpu", True, "llama2-7b", "float32", (_SLIM, _WIKI), (512, 512, 512), 100_000),
        ("cpu", False, "llama2-7b", "float32", None, (512, 512, 512), 100_000),
        ("cuda", True, "smollm2-135m-instruct", None, None, (512, 512, 512), 100_000),
        ("cpu", True, "smollm2-135m-instruct", "float32", None, (512, 512, 512), 100_000),
    ],
)
def test_what_is_left_open_suits_model_device_and_hub(
    on: Any,
    tmp_path: Path,
    device: str,
    hub: bool,
    model: str,
    dtype: str | None,
    texts: tuple[str, str] | None,
    lengths: tuple[int, int, int],
    n_tokens: int,
) -> None:
    on(device, hub=hub)
    found = decided(_config(tmp_path, model))
    own = found.config
    assert dtype is None or own.dtype == dtype
    assert (own.calibration.texts, own.perplexity.texts) == (
        texts or ("packaged", "packaged:heldout")
    )
    assert (own.calibration.length, own.perplexity.length, own.training.length) == lengths
    assert own.training.n_tokens == n_tokens
    assert set(found.choices[model]) == set(AUTO)
    assert all(choice["why"] for choice in found.choices[model].values())
    assert decided(own).config is own, "nothing is left open"


def test_what_is_given_stays(on: Any, tmp_path: Path) -> None:
    on("cuda", hub=True)
    given = {"texts": "c4", "n_tokens": 900, "learning_rate": 0.5}
    found = decided(_config(tmp_path, dtype="float32", training=given))
    recipe = found.config.training
    assert (recipe.texts, recipe.n_tokens, recipe.learning_rate) == ("c4", 900, 0.5)
    assert found.config.dtype == "float32"
    assert (recipe.epochs, recipe.batch_tokens) == (2, 1024), "a small budget has a trial's recipe"
    assert not {"dtype", "training.n_tokens", "training.learning_rate"} & {
        *found.choices["llama2-7b"]
    }
    large = decided(_config(tmp_path, training={"n_tokens": 60_000_000})).config.training
    assert (large.batch_tokens, large.normalize) == (2_048, False), "a large one the paper's"
    documents = decided(_config(tmp_path, training={"n_documents": 30_000})).config.training
    assert (documents.n_tokens, documents.n_documents, documents.epochs) == (None, 30_000, 5)


def test_the_hub_is_asked_for_no_text_where_all_are_given(
    on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on("cpu", hub=True)
    asked: list[str] = []
    monkeypatch.setattr(choices, "hub_problem", lambda: asked.append("hub"))
    own = {"calibration": {"texts": "c4"}, "perplexity": {"texts": "wikitext2"}}
    found = decided(_config(tmp_path, **own)).config
    assert (found.calibration.texts, found.perplexity.texts) == ("c4", "wikitext2")
    assert asked == []
    assert decided(_config(tmp_path, calibration={"texts": "c4"})).config.perplexity.texts == _WIKI
    assert asked == ["hub"]


@pytest.mark.parametrize(
    ("changes", "dtype", "n_tokens"),
    [
        ({"executor": "slurm", "slurm": {"gpus_per_node": 1}}, "float16", 40_960_000),
        ({"executor": "slurm", "slurm": {"slurm_gres": "gpu:a100:1"}}, "float16", 40_960_000),
        ({"executor": "slurm", "slurm": {"gpus_per_node": 0}}, "float32", 100_000),
        ({"executor": "slurm", "slurm": {"gpus_per_node": 1}, "device": "cpu"}, "float32", 100_000),
        ({"executor": "ray"}, "float32", 100_000),
        ({"executor": "ray", "device": "cuda"}, "float16", 40_960_000),
    ],
)
def test_a_login_node_without_an_accelerator_decides_for_the_machines_that_work(
    on: Any, tmp_path: Path, changes: dict[str, Any], dtype: str, n_tokens: int
) -> None:
    on("cpu", hub=True)
    found = decided(_config(tmp_path, **changes))
    assert (found.config.dtype, found.config.training.n_tokens) == (dtype, n_tokens)
    unsaid = n_tokens == 100_000 and "device" not in changes
    assert unsaid == any("--device names that of other machines" in x for x in found.remarks())


def test_a_models_own_code_says_how_large_it_is_only_if_it_may_run(
    on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on("cuda", hub=True)
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")

    def guarded(found: Any) -> Any:
        def get(name: str, *, trust_remote_code: bool = False) -> Any:
            if not trust_remote_code:
                raise AssetError("it has code of its own")
            return found

        return get

    monkeypatch.setattr(choices, "planned_model", guarded(model))
    monkeypatch.setattr(choices, "load_config", guarded(model.config))
    trusted = _config(tmp_path, str(tmp_path / "model"), trust_remote_code=True)
    own = decided(trusted).config
    assert own.training.n_tokens == 3_000 * 512, "what is stated for the smallest model"
    assert own.calibration.length == min(2_048, model.config.max_position_embeddings)


def test_a_budget_is_bounded_by_its_text(on: Any, tmp_path: Path) -> None:
    on("cuda", hub=True)
    file = tmp_path / "mine.txt"
    file.write_text("word " * 60_000)
    found = decided(_config(tmp_path, calibration={"texts": str(file)}))
    assert found.config.training.n_tokens == 40_000
    why = found.choices["llama2-7b"]["training.n_tokens"]["why"]
    assert why.startswith(f"what {file} surely holds, of 20,000 samples, 5 times, as arXiv")


def test_models_that_differ_are_decided_each(on: Any, tmp_path: Path) -> None:
    on("cuda", hub=True)
    found = decided(_config(tmp_path, "llama2-7b,llama3-8b,smollm2-135m-instruct"))
    dtypes = [found.config.for_model(name).dtype for name in found.config.models]
    assert dtypes[:2] == ["float16", "bfloat16"]
    texts = [found.config.for_model(name).calibration.texts for name in found.config.models]
    assert texts == [_SLIM, _SLIM, "packaged"]
    assert any(line.startswith("llama3-8b: dtype bfloat16: ") for line in found.remarks())
    own = _config(tmp_path, per_model={"llama2-7b": {"dtype": "auto"}}, dtype="float32")
    assert decided(own).config.for_model("llama2-7b").dtype == "float16"


def test_a_folder_keeps_to_what_it_has_decided(on: Any, tmp_path: Path) -> None:
    on("cuda", hub=True)
    first = _config(tmp_path)
    before = decided(first)
    sources = {"tasks": {}, "texts": {}, "models": {}, "settings": before.to_json(None)}
    settings = before.config.model_dump(mode="json") | {"sources": sources}
    write_json_atomic(first.out / SETTINGS, settings)
    on("cpu", hub=False)
    after = decided(first)
    assert after == before
    own, known = decided_for(before.config, "llama2-7b")
    assert known == before.choices["llama2-7b"], "the reasons stay too"
    changed = decided(_config(tmp_path, training={"n_tokens": 900}, dtype="bfloat16"))
    assert changed.config.calibration == own.calibration
    _, known = decided_for(changed.config, "llama2-7b")
    assert "training.n_tokens" not in known and "dtype" not in known
    anew = decided(_config(tmp_path, data="packaged"))
    assert (anew.config.dtype, anew.config.calibration.texts) == ("float32", "packaged")


def test_another_budget_has_a_recipe_of_its_own_in_the_same_folder(on: Any, tmp_path: Path) -> None:
    on("cuda", hub=True)

    def go_on(**training: Any) -> RunConfig:
        config = _config(tmp_path, training=training)
        found, path = decided(config), config.out / SETTINGS
        kept = json.loads(path.read_text())["sources"] if path.exists() else None
        sources = {"tasks": {}, "texts": {}, "models": {}, "settings": found.to_json(kept)}
        write_json_atomic(path, found.config.model_dump(mode="json") | {"sources": sources})
        return found.config

    stated = go_on()
    assert (stated.training.n_tokens, stated.training.batch_tokens) == (40_960_000, 2_048)
    small = go_on(n_tokens=900)
    fresh = decided(_config(tmp_path / "new", training={"n_tokens": 900})).config
    assert small.training == fresh.training and small.training.batch_tokens == 1_024
    assert (small.calibration, small.dtype) == (stated.calibration, stated.dtype)
    assert go_on(n_tokens=900).training == small.training
    assert go_on().training == stated.training, "nor is what was decided first mixed with it"


def test_keys_hold_what_was_decided(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "m")
    own = decided(_config(tmp_path, str(tmp_path / "m"))).config
    given = own.model_dump(mode="json", exclude={"suite", "per_model"})
    found = [shared_inputs(one, "f", settle(one)) for one in (own, build_config(given))]
    assert found[0] == found[1]
    assert (found[0]["dtype"], found[0]["training"]["n_tokens"]) == ("float32", 100_000)
    assert "auto" not in json.dumps(found[0])


def test_a_checkpoint_says_its_format(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    tiny_model("llama").save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for name, value, found in (
        ("torch_dtype", "bfloat16", "bfloat16"),
        ("dtype", "float16", "float16"),
        ("dtype", "float64", None),
        ("other", "float16", None),
    ):
        bare = {k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")}
        file.write_text(json.dumps(bare | {name: value}))
        assert formats.stored_dtype(str(folder)) == found
    assert formats.stored_dtype("llama2-7b") == "float16"
    assert formats.device_kind("cuda:1") == "cuda", "a plan may be for another machine"


def test_the_nearest_stated_budget() -> None:
    assert stated_for("opt-2.7b", None).n_samples == 3_000
    sizes = {5e8: "opt-1.3b", 3e9: "opt-2.7b", 8e9: "llama2-7b", 1.3e10: "llama2-7b"}
    assert {size: stated_for("x", int(size)).model for size in sizes} == sizes
    assert len({budget.model for budget in BUDGETS}) == len(BUDGETS)


def test_what_is_decided_suits_the_second_training(tmp_path: Path) -> None:
    own = _config(tmp_path, training={"post_train": {"n_tokens": 300_000}})
    assert decided(own).config.training.n_tokens == 300_000
    small = tmp_path / "small.txt"
    small.write_text("word " * 100)
    given = {
        "calibration": {"texts": str(small)},
        "training": {"post_train": {"n_tokens": 300_000}},
    }
    with pytest.raises(ConfigError, match="n_tokens 300000 is more than its 66"):
        decided(_config(tmp_path, **given))
