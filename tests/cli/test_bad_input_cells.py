"""Bad texts, questions, tasks, methods and plug-ins: a run of seconds says which, and goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import Shown, base_suite

_WORDS = "lorem ipsum dolor sit amet " * 500
_SLOW = pytest.mark.slow  # another file of a kind that is among the fast ones
_TEXTS = [
    ("empty.txt", "", "has no document"),
    pytest.param("spaces.txt", " \n\n \n", "has no document", marks=_SLOW),
    ("tiny.txt", "hello", "64 tokens are needed and the text has 6 in 1 documents"),
    ("binary.txt", bytes(range(256)) * 100, "binary.txt is not UTF-8"),
    pytest.param("latin.txt", ("é" * 500).encode("latin-1"), "latin.txt is not", marks=_SLOW),
    pytest.param("utf16.txt", _WORDS.encode("utf-16"), "utf16.txt is not UTF-8", marks=_SLOW),
    ("latin.jsonl", '{"text": "é"}\n'.encode("latin-1"), "latin.jsonl"),
    ("half.jsonl", f'{{"text": "\\ud800 {_WORDS}"}}\n', "half.jsonl, line 1"),
    pytest.param("none.jsonl", "", "has no document", marks=_SLOW),
    ("field.jsonl", '{"content": "x"}\n', "field.jsonl, line 1 has no field 'text'"),
    pytest.param("number.jsonl", '{"text": 5}\n', "line 1 has no field 'text'", marks=_SLOW),
    pytest.param("list.jsonl", "[1]\n", "line 1 has no field 'text'", marks=_SLOW),
    ("cut.jsonl", '{"text": "a"}\n{bad\n', "cut.jsonl, line 2 is not JSON"),
    pytest.param("blank.jsonl", '{"text": ""}\n' * 9, "has no document", marks=_SLOW),
    pytest.param("deep.jsonl", '{"text": ' + "[" * 100_000, "line 1 is not JSON", marks=_SLOW),
    ("digits.jsonl", '{"text": ' + "9" * 5_000 + "}\n", "digits.jsonl, line 1 is not JSON"),
]


@pytest.mark.parametrize(("name", "content", "message"), _TEXTS)
def test_a_bad_text_costs_the_cells_that_read_it(
    name: str, content: str | bytes, message: str, bench: Callable[..., Shown], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    shown = bench(f"--suite s.yaml --out OUT --calibration {path}")
    shown.refuses(message, code=shown.code)
    assert shown.code in (1, 2)


_ROW = '{"goal": "g", "sol1": "a", "sol2": "b"}\n'
_QUESTIONS: list[tuple[str | bytes, str, str]] = [
    ("", "", "piqa/dev.jsonl"),
    (_ROW * 4, "0\n1\n", "4 questions but 2 labels"),
    (_ROW * 2, "7\n1\n", "piqa"),
    (_ROW * 2, "-1\n1\n", "piqa"),
    (_ROW * 2, "a\nb\n", "piqa/dev.jsonl"),
    ('{"goal": null, "sol1": "a", "sol2": "b"}\n', "0\n", "piqa"),
    (_ROW, "9" * 5_000, "piqa/dev.jsonl"),
    ('{"goal": "g", "sol1": "a"}\n', "0\n", "piqa/dev.jsonl"),
    ("{bad\n", "0\n", "piqa/dev.jsonl"),
    ("[1, 2]\n", "0\n", "piqa/dev.jsonl"),
    ("[" * 100_000, "0\n", "piqa"),
    ('{"goal": 5, "sol1": "a", "sol2": "b"}\n' + _ROW, "0\n1\n", "piqa"),
    ('{"goal": "g", "sol1": "", "sol2": ""}\n', "0\n", "piqa"),
    ('{"goal": "\\ud800", "sol1": "a", "sol2": "b"}\n', "0\n", "piqa"),
    ('{"goal": "é", "sol1": "a", "sol2": "b"}\n'.encode("latin-1"), "0\n", "piqa/dev.jsonl"),
    ('{"goal": "g", "sol1": "' + "x " * 6_000 + '", "sol2": "b"}\n', "0\n", "'piqa' has 12001"),
]


@pytest.mark.parametrize(("rows", "labels", "message"), _QUESTIONS)
def test_bad_questions_end_a_run_before_any_work(
    rows: str | bytes, labels: str, message: str, bench: Callable[..., Shown], tmp_path: Path
) -> None:
    folder = tmp_path / "own" / "piqa"
    folder.mkdir(parents=True)
    (folder / "dev.jsonl").write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    (folder / "dev-labels.lst").write_text(labels, encoding="utf-8")
    bench(f"--suite s.yaml --out OUT --data-dir {tmp_path / 'own'}").refuses(message)
    assert not list(tmp_path.glob("out/cache/calibration/*"))


def _task(**changes: Any) -> str:
    """lm-eval's YAML of a task on the folder's own questions."""
    import yaml

    usual = {
        "task": "my_sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": "data/piqa/dev.jsonl"},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{goal}}",
        "doc_to_choice": "{{[sol1, sol2]}}",
        "doc_to_target": "label",
    }
    return str(yaml.safe_dump(usual | changes))


_TASKS: list[tuple[str | bytes, str, str]] = [
    ("task: my_sums\n\tx", "my_sums", "my_sums"),
    (b"task: my_\xe9\n", "my_sums", "mine.yaml"),
    ("task: my_sums\ndoc_to_text: !function nothing.f\n", "my_sums", "my_sums"),
    ("task: my_sums\ncolour: red\n", "my_sums", "my_sums"),
    ("task: [my_sums]\n", "my_sums", "my_sums"),
    ("task: other\n", "my_sums", "unknown task or group 'my_sums'"),
    (_task(output_type="loglikelihood_rolling"), "my_sums", "which is not supported here"),
    (_task(doc_to_text="{{goal"), "my_sums", "my_sums"),
    (_task(test_split="nothing"), "my_sums", "my_sums"),
    (_task(dataset_kwargs={"data_files": "nowhere.jsonl"}), "my_sums", "my_sums"),
    (_task(unsafe_code=True), "my_sums", "'my_sums' is marked as unsafe"),
]


@pytest.mark.parametrize(("content", "name", "message"), _TASKS)
def test_a_bad_task_of_ones_own_is_named(
    content: str | bytes, name: str, message: str, bench: Callable[..., Shown], tmp_path: Path
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "mine.yaml").write_bytes(data)
    bench(f"--suite s.yaml --out OUT --tasks {name} --include-path {folder}").refuses(message)


_CHANGES = [
    ("--tasks heldout@99999999", {}, 2, "heldout@99999999"),
    pytest.param("--tasks piqa,xnli_en", {}, 2, "xnli", marks=_SLOW),  # reads lm-eval's own tasks
    ("--tasks wikitext2", {}, 2, "wikitext2"),
    ("--executor ray", {}, 2, "needs Ray"),
    ("--methods slicegpt+round_interval=0", {}, 2, "round_interval"),
    ("--methods slicegpt+max_slicing=2", {}, 2, "max_slicing"),
    ("--methods replaceme+ridge=-1", {}, 2, "ridge"),
    ("--methods sleb+n_samples=-1", {}, 2, "n_samples"),
    ("--methods sleb+n_samples=100000000000000000000", {}, 2, "n_samples"),
    ("--methods llm-streamline-ffn+init=foo", {}, 2, "init"),
    ("--methods llm-streamline-ffn+runner_up=500", {}, 2, "runner_up"),
    ("--methods llm-streamline-none+runner_up=-1", {}, 2, "runner_up"),
    ("--methods given-layers+remove=[1,1]", {}, 2, "twice"),
    ("", {"calibration": {"texts": "text.jsonl", "n_samples": 10**9}}, 1, "tokens are needed and"),
    ("", {"calibration": {"texts": "text.jsonl", "length": 4096}}, 1, "tokens are needed and"),
    ("", {"perplexity": {"texts": "text.jsonl", "n_tokens": 10**12}}, 2, "tokens are needed and"),
]


@pytest.mark.parametrize(("flags", "changes", "code", "message"), _CHANGES)
def test_what_a_run_cannot_do_is_said_with_its_cell_or_before_it(
    flags: str,
    changes: dict[str, Any],
    code: int,
    message: str,
    bench: Callable[..., Shown],
    suite: Callable[..., str],
) -> None:
    text = base_suite()["calibration"]
    if "calibration" in changes:
        changes = {"calibration": text | changes["calibration"]}
    bench(f"--suite {suite(**changes)} --out OUT {flags}").refuses(message, code=code)


def test_a_model_of_a_long_name_is_run(
    inputs: Path, bench: Callable[..., Shown], tmp_path: Path
) -> None:
    folder = inputs / ("m" * 250)
    shutil.copytree(inputs / "model", folder)
    assert bench(f"--suite s.yaml --models {folder} --out OUT").code == 0
    assert len(list((tmp_path / "out" / "samples").iterdir())) == 2
