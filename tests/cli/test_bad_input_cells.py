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
def test_a_bad_text_ends_a_run_before_any_work(
    name: str, content: str | bytes, message: str, bench: Callable[..., Shown], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    bench(f"--suite s.yaml --out OUT --calibration {path}").refuses(message)


_ROW = '{"goal": "g", "sol1": "a", "sol2": "b"}\n'
_QUESTIONS: list[tuple[str | bytes, str, str]] = [
    ("", "", "IndexError: list index out of range"),
    (_ROW * 4, "0\n1\n", "4 questions but 2 labels"),
    (_ROW * 2, "7\n1\n", "question 0: the right option is 7, and there are 2, counted from 0"),
    (_ROW * 2, "-1\n1\n", "question 0: the right option is -1, and there are 2"),
    (_ROW * 2, "a\nb\n", "invalid literal for int() with base 10: 'a'"),
    (
        '{"goal": null, "sol1": "a", "sol2": "b"}\n',
        "0\n",
        "question 0: goal is null, and must be text",
    ),
    (_ROW, "9" * 5_000, "Exceeds the limit (4300 digits) for integer string conversion"),
    ('{"goal": "g", "sol1": "a"}\n', "0\n", "KeyError: 'sol2'"),
    ("{bad\n", "0\n", "Expecting property name enclosed in double quotes: line 1 column 2"),
    ("[1, 2]\n", "0\n", "'list' and 'dict'"),
    ("[" * 100_000, "0\n", "maximum recursion depth exceeded while decoding a JSON array"),
    (
        '{"goal": 5, "sol1": "a", "sol2": "b"}\n' + _ROW,
        "0\n1\n",
        "question 0: goal is 5, and must be text",
    ),
    ('{"goal": "g", "sol1": "", "sol2": ""}\n', "0\n", "question 0: its option 0 is empty"),
    ('{"goal": "\\ud800", "sol1": "a", "sol2": "b"}\n', "0\n", "surrogates not allowed"),
    (
        '{"goal": "é", "sol1": "a", "sol2": "b"}\n'.encode("latin-1"),
        "0\n",
        "can't decode byte 0xe9",
    ),
    (
        '{"goal": "g", "sol1": "' + "x " * 6_000 + '", "sol2": "b"}\n',
        "0\n",
        "Option 0 of question 0 of 'piqa' has 12001",
    ),
]


@pytest.mark.parametrize(("rows", "labels", "message"), _QUESTIONS)
def test_bad_questions_end_a_run_before_any_work(
    rows: str | bytes, labels: str, message: str, bench: Callable[..., Shown], tmp_path: Path
) -> None:
    folder = tmp_path / "own" / "piqa"
    folder.mkdir(parents=True)
    (folder / "dev.jsonl").write_bytes(rows if isinstance(rows, bytes) else rows.encode())
    (folder / "dev-labels.lst").write_text(labels, encoding="utf-8")
    lacking = "1 of the question sets and texts cannot be had: piqa: "
    shown = bench(f"--suite s.yaml --out OUT --data-dir {tmp_path / 'own'}")
    shown.refuses(
        f"{lacking} ... {message} ... Mend this, name other tasks, or leave them out with"
    )
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
    ("task: my_sums\n\tx", "my_sums", "my_sums' is not a registered task"),
    (b"task: my_\xe9\n", "my_sums", "tasks/mine.yaml cannot be read: byte 9 is not UTF-8 text"),
    (
        "task: my_sums\ndoc_to_text: !function nothing.f\n",
        "my_sums",
        "my_sums: ImportError: Cannot import module 'nothing'",
    ),
    ("task: my_sums\ncolour: red\n", "my_sums", "unexpected keyword argument 'colour'"),
    ("task: [my_sums]\n", "my_sums", "unknown task or group 'my_sums'. Available: arc_challenge,"),
    ("task: other\n", "my_sums", "unknown task or group 'my_sums'. Available: arc_challenge,"),
    (_task(output_type="loglikelihood_rolling"), "my_sums", "which is not supported here"),
    (_task(doc_to_text="{{goal"), "my_sums", "my_sums: TemplateSyntaxError: unexpected end of"),
    (_task(test_split="nothing"), "my_sums", "(KeyError: 'nothing'); take a split that has"),
    (
        _task(dataset_kwargs={"data_files": "nowhere.jsonl"}),
        "my_sums",
        "my_sums: FileNotFoundError: Unable",
    ),
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
    (
        "--tasks heldout@99999999",
        {},
        2,
        "99,999,999 tokens are longer than the 512 ... choose shorter",
    ),
    pytest.param("--tasks piqa,xnli_en", {}, 2, "xnli", marks=_SLOW),  # reads lm-eval's own tasks
    (
        "--tasks wikitext2",
        {},
        2,
        "No text for 'wikitext2' ... Or put wikitext-2-raw/wiki.test.raw into",
    ),
    (
        "--methods slicegpt+round_interval=0",
        {},
        2,
        "round_interval=0 of slicegpt is not accepted: Input should",
    ),
    (
        "--methods slicegpt+max_slicing=2",
        {},
        2,
        "max_slicing=2.0 of slicegpt is not accepted: Input should be",
    ),
    (
        "--methods replaceme+ridge=-1",
        {},
        2,
        "ridge=-1.0 of replaceme is not accepted: Input should be greater",
    ),
    ("--methods sleb+n_samples=-1", {}, 2, "should be greater than or equal to 1"),
    ("--methods sleb+n_samples=100000000000000000000", {}, 2, "should be less than or equal to"),
    ("--methods llm-streamline-ffn+init=foo", {}, 2, "from init='foo'; choose random, linear"),
    ("--methods llm-streamline-ffn+runner_up=500", {}, 2, "should be less than or equal to 255"),
    ("--methods llm-streamline-none+runner_up=-1", {}, 2, "should be greater than or equal to 0"),
    ("--methods given-layers+remove=[1,1]", {}, 2, "remove names the attention of layer 1 twice"),
    (
        "",
        {"calibration": {"texts": "text.jsonl", "n_samples": 10**9}},
        2,
        "is too short for ... tokens are needed and ... Ask for less, or",
    ),
    (
        "",
        {"calibration": {"texts": "text.jsonl", "length": 4096}},
        2,
        "is too short for ... tokens are needed and ... Ask for less, or",
    ),
    (
        "",
        {"perplexity": {"texts": "text.jsonl", "n_tokens": 10**12}},
        2,
        "is too short for ... tokens are needed and ... Ask for less, or",
    ),
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
