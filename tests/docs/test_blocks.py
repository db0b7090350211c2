"""Every command and every Python block of the README and the pages, run or checked."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_blocks import PAGES, REPORTS, ROOT, Block, arguments, blocks, written
from word_tokenizer import english_tokenizer

from streamline.cli.main import main
from streamline.results.record import Record
from streamline.run import pipeline
from streamline.run.config import build_config
from streamline.testing.models import tiny_model

_ALIAS = "smollm2-135m-instruct"
_TINY = "models/tiny"
_TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
#: What works on results, and is run with its page alone.
_ON_RESULTS = ("compare", "export", "push", "report", "rm", "stability", "verify")
_ALL = [block for page in PAGES for block in blocks(page)]


def _exit(words: list[str]) -> int:
    with pytest.raises(SystemExit) as info:
        main(words)
    return int(info.value.code or 0)


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_fences_of_a_known_language(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not re.findall(r"^ {4}(?:streamline-bench|torchrun|make|pip) .*", text, re.MULTILINE)
    assert {block.language for block in blocks(page)} <= {"sh", "python", "yaml", "toml"}


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize("block", [b for b in _ALL if b.language == "sh" and b.mark != "not run"],
                         ids=lambda block: f"{block.page}:{block.line}")  # fmt: skip
def test_every_command_is_accepted(block: Block) -> None:
    """Up to the work itself, which is replaced: flags, values, names of methods, tasks, suites."""
    for words in block.commands():
        own = arguments(words)
        if words[0] == "make":
            assert words[1] in _TARGETS
        elif words[0] in ("export", "."):
            continue
        else:
            assert own is not None, f"{words[0]} is not checked: mark the block"
            _accepted(own)


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize("page", [page for page in REPORTS if written(page)])
def test_the_commands_of_committed_results_are_accepted(page: str) -> None:
    for words in written(page):
        _accepted(words[1:])


def _accepted(own: list[str]) -> None:
    if own[0] not in _ON_RESULTS and not {">", "--plan"} & {*own}:
        assert _exit(own) == 0, " ".join(own)


@pytest.fixture
def undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unrehearsed: None) -> None:
    """A folder with what commands name, in which all is checked and nothing done."""
    record = Record.build({"model": "m", "method": "shortgpt", "sparsity": 0.25, "status": "ok"})
    works = (("run", [record]), ("prune_to_checkpoint", None), ("evaluate_model", record))
    for verb, answer in works:
        monkeypatch.setattr(pipeline, verb, lambda *_, answer=answer, **__: answer)
    monkeypatch.chdir(tmp_path)
    _write_tasks(tmp_path)
    for name in ("data", "DATA"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine.yaml").write_text("models: opt-1.3b\nmethods: shortgpt\n", encoding="utf-8")


def test_scripts_are_shown_whole() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    shown = re.findall(r'^ {4}--8<-- "(.+)"$', text, re.MULTILINE)
    assert sorted(shown) == sorted(f"examples/{p.name}" for p in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("block", [b for b in _ALL if b.language in ("yaml", "toml")
                                   and b.mark != "not run"],
                         ids=lambda block: f"{block.page}:{block.line}")  # fmt: skip
def test_every_file_shown_can_be_read(block: Block, tmp_path: Path) -> None:
    if block.language == "toml":
        assert tomllib.loads(block.code)
        return
    assert yaml.safe_load(block.code)
    suite = tmp_path / "shown.yaml"
    suite.write_text(block.code, encoding="utf-8")
    assert build_config({}, suite=str(suite)).models


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if page != "docs/python.md"  # run by tests/test_api.py
        if any(b.language in ("sh", "python") and not b.mark for b in blocks(page))
    ],
)
def test_a_page_runs_from_its_first_line_to_its_last(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a tiny model in the place of the embedded one; texts and questions are the packaged."""
    monkeypatch.chdir(tmp_path)
    tokenizer = english_tokenizer()
    shape = {"vocab_size": len(tokenizer), "intermediate_size": 256}
    tiny_model("llama", n_layers=8, **shape).save_pretrained(_TINY)
    tokenizer.save_pretrained(_TINY)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.mark or block.language not in ("sh", "python"):
            continue
        if block.language == "python":
            code = block.code.replace(_ALIAS, _TINY)
            exec(compile(code, f"{page}:{block.line}", "exec", dont_inherit=True), names)
            continue
        for words in block.commands():
            own = arguments(words)
            if own is not None:
                _run([word.replace(_ALIAS, _TINY) for word in own], f"{page}:{block.line}")


def _run(words: list[str], where: str) -> None:
    """A command as written, with few questions and samples; a suite gets the tiny model."""
    if "--quick" in words:
        few = ["--limit", "2"] if "--limit" not in words else []
        words += [*few, *([] if "--print-config" in words else ["--efficiency", "off"])]
    if words[0] == "prune":
        words += ["--calibration-samples", "2"]
    if "--suite" in words and "--models" not in words and "--dry-run" not in words:
        words += ["--models", _TINY] if words[words.index("--suite") + 1] != "mine.yaml" else []
    if ">" not in words:
        assert _exit(words) == 0, f"{where}: {' '.join(words)}"
        return
    at = words.index(">")
    target, words = Path(words[at + 1]), words[:at] + words[at + 2 :]
    with pytest.MonkeyPatch.context() as patch, target.open("w", encoding="utf-8") as file:
        patch.setattr("sys.stdout", file)
        assert _exit(words) == 0, where


def _write_tasks(folder: Path) -> None:
    """A folder with one task of one's own."""
    (folder / "my_tasks").mkdir()
    task = {"task": "my_task", "dataset_path": "json", "output_type": "multiple_choice"}
    more = {"test_split": "test", "doc_to_text": "q", "doc_to_target": "a", "doc_to_choice": ["x"]}
    (folder / "my_tasks" / "my_task.yaml").write_text(yaml.safe_dump(task | more))
    os.environ.pop("HF_TOKEN", None)
