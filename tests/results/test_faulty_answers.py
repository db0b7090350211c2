"""Answers that are none are refused by each reader, on both sides, and leave the others there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from streamline.cli.main import app
from streamline.errors import ConfigError
from streamline.results.samples import COLUMNS, write_samples

N = 3
Rows = list[dict[str, Any]]


def log_rows() -> Rows:
    return [
        {
            "doc_id": i,
            "doc": {"q": i},
            "target": str(i % 2),
            "arguments": {
                f"gen_args_{k}": {"arg_0": f"Q{i}", "arg_1": f" option {k}"} for k in range(2)
            },
            "filtered_resps": [["-4.0", "False"], [f"-{5 + i}.5", "False"]],
            "filter": "none",
            "metrics": ["acc"],
            "doc_hash": f"d{i}",
            "prompt_hash": f"p{i}",
            "acc": float(i % 2 == 0),
        }
        for i in range(N)
    ]


def write_log(folder: Path, name: str, rows: Rows) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"samples_{name}.jsonl").write_text(text, encoding="utf-8")


def opencompass_rows() -> Rows:
    return [
        {
            "label: A": {"prompt": f"{i} A", "PPL": 2.0 + i},
            "label: B": {"prompt": f"{i} B", "PPL": 2.5},
            "prediction": "A",
            "gold": "AB"[i % 2],
        }
        for i in range(N)
    ]


def write_opencompass(folder: Path, name: str, rows: Rows) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {str(i): row for i, row in enumerate(rows)}
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def sample_rows() -> Rows:
    return [
        {
            "doc_id": i,
            "doc_hash": f"d{i}",
            "option": k,
            "loglikelihood": -4.0 - k * i,
            "n_tokens": 2,
            "n_bytes": 3,
            "gold": i % 2,
            "chosen": 0,
            "correct": i % 2 == 0,
            "metric": "acc",
        }
        for i in range(N)
        for k in range(2)
    ]


def write_parquet(folder: Path, name: str, rows: Rows) -> None:
    """Past our own writer, which refuses some of it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "cell.parquet"
    frame = pd.DataFrame([{"task": name, **row} for row in rows]).reindex(columns=list(COLUMNS))
    if file.is_file():
        frame = pd.concat([pd.read_parquet(file), frame], ignore_index=True)
    frame.to_parquet(file)


WRITERS: dict[str, tuple[Callable[[], Rows], Callable[[Path, str, Rows], None]]] = {
    "lm-eval": (log_rows, write_log),
    "opencompass": (opencompass_rows, write_opencompass),
    "samples": (sample_rows, write_parquet),
}


def put(path: str, value: Any) -> Callable[[Rows], None]:
    """Set one value of a row: ``1/label: A/PPL``."""

    def change(rows: Rows) -> None:
        *way, last = [int(word) if word.isdigit() else word for word in path.split("/")]
        place: Any = rows
        for word in way:
            place = place[word]
        place[last] = value

    return change


def drop(path: str) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        *way, last = [int(word) if word.isdigit() else word for word in path.split("/")]
        place: Any = rows
        for word in way:
            place = place[word]
        del place[last]

    return change


def twice(rows: Rows) -> None:
    rows.append(dict(rows[-1]))


FAULTS = [
    ("lm-eval", put("1/filtered_resps/0/0", "nan"), "question 1 has 'nan' for option 0"),
    ("lm-eval", put("1/filtered_resps/1/0", "-inf"), "question 1 has '-inf' for option 1"),
    ("lm-eval", put("1/filtered_resps/1/0", "much"), "question 1.*'much'"),
    ("lm-eval", put("1/filtered_resps", None), "question 1 .*answers"),
    ("lm-eval", put("1/filtered_resps/0", None), "question 1 .*answers"),
    ("lm-eval", put("1/acc", None), "question 1 has acc None"),
    ("lm-eval", put("1/target", "-1"), "question 1.*right option -1.*2 options"),
    ("lm-eval", put("1/target", "2"), "question 1.*right option 2.*2 options"),
    ("lm-eval", put("1/arguments/gen_args_1/arg_1", ""), "question 1.*option 1 is empty"),
    ("lm-eval", drop("1/arguments/gen_args_1"), "question 1"),
    ("lm-eval", put("1/doc_id", "one"), "doc_id"),
    ("lm-eval", twice, "question 2 .*twice"),
    ("opencompass", put("1/label: A/PPL", float("nan")), "option 0 of question 1 is nan"),
    ("opencompass", put("1/label: A/PPL", 1e999), "option 0 of question 1 is inf"),
    ("opencompass", put("1/label: A/PPL", "x"), "item 1.*'x'"),
    ("opencompass", put("1/gold", "-1"), "item 1.*gold '-1'.*A, B"),
    ("opencompass", put("1/prediction", "C"), "item 1.*prediction 'C'.*A, B"),
    ("opencompass", drop("1/label: B"), "item 1.*gold 'B'.*labels A"),
    ("samples", put("2/loglikelihood", float("nan")), "option 0 of question 1 is nan"),
    ("samples", put("3/loglikelihood", -1e999), "option 1 of question 1.* is -?inf"),
    ("samples", put("2/prompt_nll", 2.0), "prompt_nll"),
    ("samples", put("2/n_tokens", 0), "question 1"),
    ("samples", lambda rows: [row.update(gold=-1) for row in rows[2:4]], "question 1.*option -1"),
    ("samples", lambda rows: [row.update(chosen=7) for row in rows[2:4]], "question 1.*option 7"),
    ("samples", lambda rows: [row.update(correct=True) for row in rows[2:4]], "question 1.*right"),
    ("samples", put("2/gold", 0), "question 1 has two values of gold"),
    ("samples", drop("3"), "question 1 has 1 options"),
    ("samples", twice, "question 2 .*twice"),
    ("samples", put("3/option", 5), "question 1.*options are 0, 5"),
    ("opencompass", drop("0/label: B"), "question 0 has fewer than two"),
    ("samples", drop("1"), "question 0 has fewer than two"),
]


@pytest.mark.parametrize(("kind", "fault", "words"), FAULTS)
@pytest.mark.parametrize("side", [0, 1])
def test_a_set_with_a_fault_is_left_out_by_name_and_the_others_stay(
    tmp_path, kind, fault, words, side
):
    make, write = WRITERS[kind]
    for number, folder in enumerate((tmp_path / "dense", tmp_path / "pruned")):
        rows = make()
        if number == side:
            fault(rows)
        write(folder, "broken", rows)
        write(folder, "good", make())
    arguments = ["stability", str(tmp_path / "dense"), str(tmp_path / "pruned"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    assert [row["task"] for row in json.loads(result.stdout)] == ["good"]
    line = next(line for line in result.stderr.splitlines() if "broken" in line)
    assert line.startswith("left out: ")
    assert re.search(words, result.stderr.replace("\n", " ")), result.stderr


@pytest.mark.parametrize("kind", WRITERS)
def test_without_a_fault_nothing_is_left_out(tmp_path, kind):
    make, write = WRITERS[kind]
    for folder in (tmp_path / "dense", tmp_path / "pruned"):
        write(folder, "good", make())
    arguments = ["stability", str(tmp_path / "dense"), str(tmp_path / "pruned"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    [row] = json.loads(result.stdout)
    assert (row["stability"], row["n"]) == (1.0, N)


@pytest.mark.parametrize("kind", WRITERS)
def test_where_every_set_has_a_fault_it_is_one_message(tmp_path, kind):
    make, write = WRITERS[kind]
    fault = next(fault for name, fault, _ in FAULTS if name == kind)
    for folder in (tmp_path / "dense", tmp_path / "pruned"):
        rows = make()
        fault(rows)
        write(folder, "broken", rows)
    result = CliRunner().invoke(
        app, ["stability", str(tmp_path / "dense"), str(tmp_path / "pruned")]
    )
    assert isinstance(result.exception, ConfigError)  # which the program turns into exit code 2
    assert "broken" in str(result.exception)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("1/prompt_hash", "other"), "question.*1.*another prompt"),
        (put("1/arguments/gen_args_0/arg_0", "Q with examples"), "question.*1.*another prompt"),
        (lambda rows: [row.update(filter="flexible") for row in rows], "acc,flexible"),
        (put("1/doc_hash", "other"), "question.*1.*another doc_hash"),
    ],
)
def test_questions_pair_by_content_prompt_and_filter(tmp_path, change, words):
    for name in ("dense", "pruned"):
        rows = log_rows()
        if name == "pruned":
            change(rows)
        write_log(tmp_path / name, "broken", rows)
        write_log(tmp_path / name, "good", log_rows())
    arguments = ["stability", str(tmp_path / "dense"), str(tmp_path / "pruned"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert [row["task"] for row in json.loads(result.stdout)] == ["good"]
    assert re.search(words, result.stderr.replace("\n", " ")), result.stderr


@pytest.mark.parametrize("name", ["samples_t.jsonl", "t.json", "t.parquet", "results.json"])
@pytest.mark.parametrize("content", [b"\xff\xfe\x00{", b"", b"{", b"[" * 100_000, b"7" * 5000])
def test_bytes_of_any_kind_are_one_message(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    result = CliRunner().invoke(app, ["stability", str(tmp_path), str(tmp_path)])
    assert isinstance(result.exception, ConfigError), repr(result.exception)
    assert str(tmp_path) in str(result.exception)


def test_our_own_writer_takes_what_our_reader_takes(tmp_path):
    write_samples(tmp_path / "x.parquet", pd.DataFrame([{"task": "t", **r} for r in sample_rows()]))
    result = CliRunner().invoke(app, ["stability", *[str(tmp_path / "x.parquet")] * 2, "--json"])
    assert result.exit_code == 0, result.output
