"""Every row's machinery on tiny models; a planted difference is found. No time is judged."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from streamline.baselines.sleb import SLEB, Round
from streamline.benchmarks.speed import (
    common,
    commonsense_dense,
    commonsense_variants,
    deep_config,
    mmlu_5shot,
    passages,
    peak,
    peers,
    published,
    questions,
    rate,
    report,
    scaling,
    scoring_row,
    sleb,
    spans,
    students,
)
from streamline.benchmarks.speed.__main__ import main
from streamline.benchmarks.speed.common import Disagreement, Options, Outcome, Race
from streamline.decoder import Decoder
from streamline.errors import ConfigError, StreamlineError
from streamline.evaluation.harness import task_part
from streamline.evaluation.packing import Request, pack
from streamline.evaluation.scoring import Answers
from streamline.evaluation.tasks import TaskEntry
from streamline.files import write_json_atomic
from streamline.mixing import Document
from streamline.paths import dense_path
from streamline.plan import Span
from streamline.testing import tiny_config, tiny_model, tiny_tokenizer

OPTIONS = Options(size="quick", repeats=2, model="tiny", memory=False)
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "warm",
    "mat",
    "while",
    "the",
    "old",
    "garden",
    "of",
    "rue",
    "grew",
    "near",
    "a",
    "wall",
    "of",
    "stone",
]


def asked(n: int) -> list[tuple[str, list[str], int]]:
    """Written questions of three options, behind one common beginning."""
    return [
        (f"Once: {' '.join(WORDS[i : i + 4])}", [f" {w}" for w in WORDS[i : i + 3]], i % 3)
        for i in range(n)
    ]


def toy_parts(names: Any, tokenizer: Any, model: Any, limit: int) -> list[Any]:
    """Two tasks of lm-eval over made-up questions, in the place of the packaged ones."""
    from lm_eval.api.task import ConfigurableTask

    docs = [
        {"q": " ".join(WORDS[i % 9 : i % 9 + 4 + i % 3]), "options": WORDS[i % 7 : i % 7 + 3]}
        | {"gold": i % 3}
        for i in range(limit)
    ]
    parts = []
    for name in ("first", "second"):
        config = {
            "task": name,
            "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": f"{name}: {{{{q}}}}",
            "doc_to_choice": "options",
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
            "metadata": {"version": 1},
        }
        entry = TaskEntry(name=name, tasks=(name,), protocol="lm-eval", metric="acc")
        parts.append(task_part(ConfigurableTask(config=config), entry, tokenizer, max_length=512))
    return parts


def toy_tokens(tokenizer: Any, n: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 250, (n, min(length, 48)), generator=generator)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Give a row's module a tiny model, made-up questions and made-up tokens."""

    def install(module: Any, n_layers: int = 6) -> tuple[Any, Any]:
        model = tiny_model("llama", n_layers=n_layers).requires_grad_(False)
        half = tiny_model("llama", n_layers=n_layers).requires_grad_(False).bfloat16()
        tokenizer = tiny_tokenizer()
        replace = {
            "loaded": lambda name, dtype="float32": (
                half if dtype == "bfloat16" else model, tokenizer,
            ),
            "task_parts": toy_parts,
            "samples": toy_tokens,
        }  # fmt: skip
        for name, value in replace.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
        return model, tokenizer

    return install


def altered(answers: Answers, by: float) -> Answers:
    sums = answers.loglikelihood.copy()
    sums[-1] += by
    return dataclasses.replace(answers, loglikelihood=sums)


# Comparison ----------------------------------------------------------------------------------


def test_close_numbers_pass_and_others_do_not() -> None:
    assert common.require_close("x", [1.0, 2.0], [1.0, 2.0005], 1e-3) == pytest.approx(5e-4)
    with pytest.raises(Disagreement, match=r"x differ by 0\.002 at 1 .* no time is reported"):
        common.require_close("x", [1.0, 2.0], [1.0, 2.002], 1e-3)
    with pytest.raises(Disagreement, match="x differ by nan at 0"):
        common.require_close("x", [math.nan, 2.0], [1.0, 2.0], 1e-3)
    with pytest.raises(Disagreement, match="counts of x differ"):
        common.require_close("x", [1.0], [1.0, 2.0], 1e-3)
    assert common.require_close("x", [1000.1], [1000.0], 1e-3, relative=True) < 1e-3


def test_unequal_things_are_named() -> None:
    common.require_equal("picks", [1, 2], [1, 2])
    with pytest.raises(Disagreement, match="picks differ .at 1: ours 2, theirs 3"):
        common.require_equal("picks", [1, 2], [1, 3])


def test_a_disagreement_leaves_no_times() -> None:
    def compare(results: dict[str, Any]) -> dict[str, Any]:
        common.require_equal("results", results["ours"], results["theirs"])
        return {}

    races = common.contest(2, {"ours": lambda i: i, "theirs": lambda i: i}, compare)
    assert [set(race.wall_s) for race in races] == [{"ours", "theirs"}] * 2
    with pytest.raises(Disagreement, match="results differ"):
        common.contest(2, {"ours": lambda i: i, "theirs": lambda i: 1}, compare)


def test_contestants_take_turns_to_be_first() -> None:
    order: list[str] = []
    runs = {name: lambda i, name=name: order.append(name) for name in ("ours", "theirs")}
    common.contest(3, runs, lambda results: {})
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]


def test_the_ratio_is_the_median_of_pairs() -> None:
    races = [Race({"ours": 1.0, "theirs": t}, {"ours": 2.0, "theirs": t}, {}) for t in (3, 9, 4)]
    outcome = Outcome(name="x", work="w", against="a", target=2.0, races=races)
    assert outcome.ratio == 4 and outcome.ratio_of("ours", "cpu") == 2
    assert Outcome(name="x", work="w", against="a", target=2.0).ratio is None


def test_a_missed_target_is_profiled(tiny: Callable[..., Any], tmp_path: Any) -> None:
    tiny(spans, n_layers=4)
    outcome = spans.run(dataclasses.replace(OPTIONS, repeats=1))
    assert outcome.again is not None
    rows = common.profile(outcome.again)
    assert sum(row["share"] for row in rows) > 0.3 and rows[0]["share"] >= rows[1]["share"]
    outcome.facts["profile"] = rows
    outcome.target = 1e9
    assert outcome.missed
    report.save(outcome, tmp_path, "quick")
    assert "profile (own time): " in (tmp_path / "README.md").read_text()


# Scoring rows --------------------------------------------------------------------------------


def test_our_answers_are_lm_evals_for_every_variant() -> None:
    model, tokenizer = tiny_model("llama").requires_grad_(False), tiny_tokenizer()
    decoder = Decoder(model)
    paths = [scoring_row.replaced(decoder, Span(3, 5), kind) for kind in scoring_row.KINDS]
    parts = [questions.written("w", asked(8)[i : i + 4], tokenizer) for i in (0, 4)]
    outcome = Outcome(name="x", work="w", against="a", target=None)
    scoring_row.race_scoring(outcome, [dense_path(decoder), *paths], tokenizer, parts)
    assert len(outcome.races) == 2 and outcome.facts["max_difference"] < 1e-3
    assert outcome.races[0].facts["n_models"] == 5
    assert outcome.facts["accuracy"]["w"]["n"] == 8
    first = outcome.facts["sharing"][0]
    assert first["layer_runs"] < first["layer_runs_unshared"]
    assert first["tokens"] < first["tokens_unshared"]


@pytest.mark.parametrize("amount", [2e-3, math.nan])
def test_a_planted_log_probability_is_found(monkeypatch: pytest.MonkeyPatch, amount: float) -> None:
    model, tokenizer = tiny_model("llama").requires_grad_(False), tiny_tokenizer()
    part = questions.written("w", asked(3), tokenizer)
    honest = peers.LmEval.answer

    def planted(self: Any, some: Any) -> list[Answers]:
        return [altered(answers, amount) for answers in honest(self, some)]

    monkeypatch.setattr(peers.LmEval, "answer", planted)
    outcome = Outcome(name="x", work="w", against="a", target=None)
    with pytest.raises(Disagreement, match="summed log-probabilities of model 0 differ"):
        scoring_row.race_scoring(outcome, [dense_path(Decoder(model))], tokenizer, [part])
    assert not outcome.races


def test_a_planted_grade_is_found() -> None:
    part = questions.written("w", asked(2), tiny_tokenizer())
    counts = np.ones(6, dtype=np.int64)
    sums = np.array([-1.0, -1.0005, -3, -1, -1, -1])
    ours = Answers(sums, counts > 0, counts)
    theirs = Answers(np.array([-1.0, -0.9996, -3, -1, -1, -1]), counts > 0, counts)
    with pytest.raises(Disagreement, match="grades of model 0 on w differ"):
        peers.same_answers(part, [ours], [theirs])
    with pytest.raises(Disagreement, match="numbers of models differ"):
        peers.same_answers(part, [ours], [])


def test_other_token_ids_are_found() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    part = questions.written("w", asked(2), tokenizer)
    wrong = dataclasses.replace(part, requests=part.requests[::-1])
    with pytest.raises(Disagreement, match="token ids differ"):
        peers.answer([dense_path(Decoder(model))], wrong, tokenizer)


def test_slices_share_no_question() -> None:
    model, tokenizer = tiny_model("llama", n_layers=2), tiny_tokenizer()
    parts = toy_parts(None, tokenizer, model, 6)
    first, second = questions.slices(parts, 2, 2)
    ids = [{(r.task, r.doc_id) for r in cut.requests} for cut in (first, second)]
    assert ids[0] == {(t, d) for t in ("first", "second") for d in (0, 1)}
    assert not ids[0] & ids[1] and len(ids[1]) == 4
    with pytest.raises(ConfigError, match="first has 6 questions, too few for 4 times 2"):
        questions.slices(parts, 2, 4)


def test_dense_row_with_bfloat16(tiny: Callable[..., Any]) -> None:
    tiny(commonsense_dense, n_layers=2)
    outcome = commonsense_dense.run(OPTIONS)
    half = outcome.facts["bf16"]
    assert outcome.facts["max_difference"] < 1e-3 < half["max_difference"]
    assert set(half["accuracy"]) == {"first", "second"} and 0 < half["questions_graded_alike"] <= 1
    assert outcome.to_json()["ratios"].keys() == {"ours", "ours_bf16"}


def test_variants_row(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(commonsense_variants)
    documents = [Document(" ".join(WORDS * 40), "made up")]
    monkeypatch.setattr(commonsense_variants, "load_texts", lambda *_, **__: documents)
    outcome = commonsense_variants.run(OPTIONS)
    assert outcome.races[0].facts["n_models"] == 13
    assert any("first 4 questions" in note for note in outcome.notes)


def test_deep_row(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(deep_config, n_layers=2)
    monkeypatch.setattr(deep_config, "SPANS", (Span(3, 4), Span(2, 5)))
    deep_config.deep_model.cache_clear()
    build = deep_config.deep_model.__wrapped__
    monkeypatch.setattr(deep_config, "deep_model", lambda name: build(name, 6))
    outcome = deep_config.run(OPTIONS)
    assert outcome.facts["sharing"][0]["layer_runs_unshared"] > 6
    assert outcome.races[0].facts["n_models"] == 9


def test_passages_row(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(passages, n_layers=2)
    text = [" ".join(WORDS[k : k + 8]) for k in range(9)]
    documents = [
        Document(" ".join(f"T{name}is {part} of it and more." for part in text * 2), "made up")
        for name in "abcde"
    ]
    monkeypatch.setattr(questions, "load_texts", lambda *_, **__: documents)
    monkeypatch.setattr(questions, "_PASSAGE_CHARS", 360)
    outcome = passages.run(OPTIONS)
    shared = outcome.facts["sharing"][0]
    assert shared["tokens_unshared"] > 5 * shared["tokens"]
    with pytest.raises(ConfigError, match="6 passages are needed, the packaged text holds 5"):
        questions.passages(6)


def test_mmlu_row(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(mmlu_5shot, n_layers=2)
    rows = [{"question": f"{w} {i}?", "choices": WORDS[:4], "answer": i % 4}
            for i, w in enumerate(WORDS)]  # fmt: skip
    monkeypatch.setattr(questions, "load_questions", lambda where: Dataset.from_list(rows))
    monkeypatch.setattr(questions, "load_shots", lambda where: rows[:5])
    outcome = mmlu_5shot.run(dataclasses.replace(OPTIONS, repeats=3))
    assert [race.facts["n_requests"] for race in outcome.races] == [28, 24, 24]
    prompt, options, gold = questions.mmlu("anatomy", 2)[1]
    assert prompt.startswith("The following are multiple choice questions (with answers) about ")
    assert prompt.count("Answer:") == 6 and options[gold] == " B"


# Layer scores, students, SLEB ----------------------------------------------------------------


def test_spans_row(tiny: Callable[..., Any]) -> None:
    tiny(spans)
    outcome = spans.run(OPTIONS)
    assert outcome.races[0].facts["max_difference"] < 1e-5
    assert outcome.facts["ratio_against_cosine_runs_alone"] > 0 and outcome.memory is None


def test_planted_span_scores_are_found() -> None:
    model = tiny_model("llama").requires_grad_(False)
    tokens = toy_tokens(None, 2, 32)
    ours = spans.ours(Decoder(model), tokens, [2])
    theirs = spans.theirs(model, tokens, [2])
    spans.same({"ours": ours, "theirs": theirs})
    scores = ours["cosine"][2]
    worst = scores.index(min(scores[:-1]))
    planted = ours | {"cosine": {2: [s + 2e-4 * (i == worst) for i, s in enumerate(scores)]}}
    with pytest.raises(Disagreement, match="cosine scores of 2 layers differ"):
        spans.same({"ours": planted, "theirs": theirs})
    *inner, last = theirs["cosine"][2]
    other = theirs | {"cosine": {2: [*inner, -2.0 if last == max(*inner, last) else 2.0]}}
    with pytest.raises(Disagreement, match="chosen spans differ"):
        spans.same({"ours": ours, "theirs": other})


def test_sleb_row(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny(sleb)
    monkeypatch.setattr(sleb, "SPARSITY", {"quick": 0.4})
    outcome = sleb.run(OPTIONS)
    assert len(outcome.races[0].facts["order"]) >= 2 and len(model.model.layers) == 6
    assert outcome.facts["sharing"]["layer_runs"] < outcome.facts["sharing"]["layer_runs_unshared"]
    monkeypatch.setattr(
        SLEB, "search", lambda self, decoder, tokens, n: [Round(i, 1.0, 1, 1) for i in range(n)]
    )
    with pytest.raises(Disagreement, match="layers in the order of their removal differ"):
        sleb.run(OPTIONS)


def test_planted_sleb_loss_is_found() -> None:
    sleb.same({"ours": ([3, 1], [2.0, 2.5]), "theirs": ([3, 1], [2.0, 2.5])})
    with pytest.raises(Disagreement, match="losses differ"):
        sleb.same({"ours": ([3, 1], [2.0, 2.5]), "theirs": ([3, 1], [2.0, 2.501])})


def test_naive_greedy_restores_the_model() -> None:
    model = tiny_model("llama", n_layers=4)
    with pytest.raises(IndexError):
        published.greedy(model, torch.full((1, 4), 10_000), 1)
    assert len(model.model.layers) == 4


def test_students_row(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(students)
    few = (Span(1, 3), Span(2, 5))
    monkeypatch.setattr(students, "TOKENS", {"quick": (192, 48)})
    monkeypatch.setattr(students, "_VALIDATION", 96)
    build, how = students.students, students.recipe
    monkeypatch.setattr(students, "students", lambda decoder: build(decoder, few))
    monkeypatch.setattr(
        students,
        "recipe",
        lambda n, length: dataclasses.replace(
            how(n, length), batch_tokens=96, validation_tokens=96
        ),
    )
    outcome = students.run(OPTIONS)
    facts = outcome.races[0].facts
    assert facts["steps"] == 2 and len(facts["validation"]) == 4
    assert facts["max_relative_difference"] < 1e-4
    assert all(before != after for before, after in facts["validation"])


def test_planted_student_loss_is_found() -> None:
    losses = [[2.0, 1.9, 1.8], [3.0, 2.9, 2.8]]
    students.same({"ours": losses, "theirs": losses})
    with pytest.raises(Disagreement, match="losses of student 1 differ"):
        students.same({"ours": losses, "theirs": [losses[0], [3.0, 2.9, 2.801]]})


# Rate, scaling, files ------------------------------------------------------------------------


def test_useful_operations_count_each_token_once() -> None:
    requests = [
        Request("a", 0, 0, (1, 2, 3), (4, 5)),
        Request("a", 0, 1, (1, 2, 3), (4, 6)),
        Request("a", 1, 0, (1, 9), (9,)),
        Request("b", 0, 0, (1, 2), (3,)),
    ]
    # a: 1 2 3 4 and 9 (its 1 is there already); b: 1 2.
    assert rate.distinct(requests) == (7, 10 + 2 + 3, 4)
    batches = pack(requests, batch_tokens=10_000)
    assert sum(batch.n_tokens for batch in batches) == 7
    config = tiny_config("llama", n_layers=2)
    found = rate.useful_operations(Decoder.from_config(config), requests)
    layer = 32 * 32 * 2 + 2 * 32 * 16 + 3 * 32 * 64
    assert found["linear"] == 2 * 7 * 2 * layer
    assert found["attention"] == 4 * 32 * 15 * 2
    assert found["head"] == 2 * 32 * config.vocab_size * 4


def test_rate_row(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(rate, n_layers=2)
    monkeypatch.setattr(rate, "_SIZES", ((64, 32, 32),))
    measure = rate.matrix_rate
    monkeypatch.setattr(rate, "matrix_rate", lambda: measure(seconds=0.005))
    outcome = rate.run(OPTIONS)
    assert outcome.value is not None and outcome.value > 0 and outcome.ratio is None
    assert outcome.facts["profile"]


def test_scaling_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("llama").requires_grad_(False), tiny_tokenizer()
    monkeypatch.setattr(questions, "task_parts", toy_parts)
    axes = {"questions": (1, 2), "variants": (1, 3), "layers": (2, 6), "tokens": (8, 16)}
    points = scaling.sweep(Decoder(model), tokenizer, axes, 1)
    assert {axis: tuple(p["value"] for p in rows) for axis, rows in points.items()} == axes
    assert scaling.plot(points).count("<svg") == 1
    line = scaling.fitted([{"value": x, "seconds": 1 + 2 * x} for x in (1, 2, 5)])
    assert line == pytest.approx({"fixed_s": 1, "per_unit_s": 2})


def test_files_of_a_row(tmp_path: Any) -> None:
    races = [Race({"ours": 1.0, "theirs": 1.5}, {"ours": 1.0, "theirs": 1.6}, {})]
    report.save(
        Outcome(name="sleb", work="w", against="a", target=1.8, races=races), tmp_path, "quick"
    )
    report.save(
        Outcome(name="scaling", work="w", against="a", target=None, facts={"svg": "<svg/>"}),
        tmp_path, "default",
    )  # fmt: skip
    found = json.loads((tmp_path / "sleb.json").read_text())
    assert found["ratio"] == 1.5 and found["memory_bytes"] is None and found["machine"]["threads"]
    text = (tmp_path / "README.md").read_text()
    assert "| sleb | w | a | 1.80 | 1.50 | 1.60 | no | quick | 1 |" in text
    assert "| scaling | w | a | - | - | - | - | default | - |" in text
    assert (tmp_path / "scaling.svg").read_text() == "<svg/>"


def test_peak_memory_of_a_process(tiny: Callable[..., Any]) -> None:
    tiny(spans, n_layers=2)
    found = peak.main("spans", "measure_ours", '["tiny", 1, 32]')
    assert 10 * 2**20 < found["before"] <= found["peak"]
    with pytest.raises(StreamlineError, match="memory of peak.nothing.* failed: AttributeError"):
        common.peak_bytes("peak", "nothing")


def test_command_line(
    tmp_path: Any, tiny: Callable[..., Any], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tiny(spans, n_layers=4)
    command = ["spans", "--quick", "--repeats", "1", "--no-memory", "--out", str(tmp_path)]
    assert main(command) == 0
    assert "spans: " in capsys.readouterr().out and (tmp_path / "spans.json").is_file()
    (tmp_path / "spans.json").unlink()
    monkeypatch.setattr(spans, "TOLERANCE", -1.0)
    assert main(command) == 1
    assert "spans: FAILED" in capsys.readouterr().out
    assert not (tmp_path / "spans.json").exists()
    with pytest.raises(SystemExit):
        main(["no-such-row"])
    assert "no row no-such-row" in capsys.readouterr().err


def test_every_row_has_a_module_and_a_committed_table_is_readable(tmp_path: Any) -> None:
    import importlib

    for name in report.ROWS:
        module = importlib.import_module(f"streamline.benchmarks.speed.{name}")
        assert callable(module.run)
    write_json_atomic(tmp_path / "x.json", Outcome(
        name="x", work="w", against="a", target=1.0).to_json())  # fmt: skip
