"""Every task is read from the hub's copies as they are, and what goes wrong is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub.conftest import Child
from hub.loopback import LoopbackHub

from streamline.evaluation.tasks.question_sets import QUESTION_SETS

_COUNTS = """
import json, sys
from streamline.errors import StreamlineError
from streamline.evaluation.questions import prepare
from streamline.testing.models import tiny_tokenizer

found = {}
for task in json.loads(sys.argv[1]):
    try:
        made = prepare([task], tiny_tokenizer(), max_length=4096, limit=3, source="hub")
        found[task] = sum(part.n_docs for part in made.parts) or len(made.texts)
    except StreamlineError as error:
        found[task] = str(error)
print(json.dumps(found))
"""

#: One task of each question set, for lm-eval's prompts and for ours, and the running texts.
_TASKS = [
    "piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge", "openbookqa", "boolq", "wsc",
    "commonsense_qa", "wsc273", "mmlu_anatomy", "cmmlu_agronomy", "streamline_cmnli",
    "streamline_c3", "streamline_wsc", "streamline_race_high", "streamline_race_middle",
    "streamline_commonsense_qa", "streamline_mmlu_anatomy", "streamline_cmmlu_agronomy",
    "streamline_xsum", "streamline_gsm8k", "streamline_strategyqa", "wikitext2", "c4",
]  # fmt: skip


@pytest.fixture
def full(hub: LoopbackHub, published: Path) -> LoopbackHub:
    """A hub with every data set."""
    shutil.copytree(published / "datasets", hub.root / "datasets")
    return hub


def _asked(child: Child, hub: LoopbackHub, *tasks: str) -> dict[str, int | str]:
    done = child(_COUNTS, hub, tasks)
    assert done.returncode == 0, done.stderr
    found: dict[str, int | str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_every_task_is_read_from_todays_copies(full: LoopbackHub, child: Child) -> None:
    found = _asked(child, full, *_TASKS)
    assert {task: n for task, n in found.items() if not isinstance(n, int) or n < 1} == {}
    sets = {name for name, row in QUESTION_SETS.items() if row.hub is not None}
    known = {task.removeprefix("streamline_") for task in _TASKS}
    assert {name for name in sets if not any(task.startswith(name) for task in known)} == set()


@pytest.mark.slow
def test_what_may_pass_is_tried_again(full: LoopbackHub, child: Child) -> None:
    full.fails(r"GET .*openai/gsm8k.*parquet", status=503, times=1)
    full.fails(r"GET .*ehovy/race.*parquet", kind="reset", after=10, times=1)
    full.fails(r"strategy-qa", status=429, times=1)
    tasks = ("streamline_gsm8k", "streamline_race_high", "streamline_strategyqa")
    assert _asked(child, full, *tasks) == dict.fromkeys(tasks, 3)


@pytest.mark.slow
def test_what_will_not_pass_is_said_with_its_reason(full: LoopbackHub, child: Child) -> None:
    full.gated.add("datasets/openai/gsm8k")
    full.private.add("datasets/tasksource/strategy-qa")
    shutil.rmtree(full.root / "datasets" / "EdinburghNLP")
    (race,) = (full.root / "datasets/ehovy/race/main/high").glob("test*")
    race.write_bytes(b"no parquet")
    found = _asked(
        child, full, "streamline_gsm8k", "streamline_strategyqa", "streamline_xsum",
        "streamline_race_high",
    )  # fmt: skip
    for task, words in (
        ("streamline_gsm8k", ("openai/gsm8k", "is gated", "hf auth login")),
        (
            "streamline_strategyqa",
            ("no data set 'tasksource/strategy-qa' that",),
        ),
        ("streamline_xsum", ("no data set 'EdinburghNLP/xsum' that", "--data-dir")),
        ("streamline_race_high", ("ehovy/race", "could not be read")),
    ):
        message = found[task]
        assert isinstance(message, str)
        assert [word for word in words if word not in message] == [], message


@pytest.mark.slow
def test_what_cannot_be_asked_of_a_copy_is_named(full: LoopbackHub, child: Child) -> None:
    """The second of three questions has null where a text belongs, or is there again."""

    def change(files: str, edit: Callable[[list[dict[str, Any]]], None]) -> None:
        (file,) = (full.root / "datasets").glob(files)
        table = pq.read_table(file)
        rows = table.to_pylist()
        edit(rows)
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)

    change("baber/piqa/main/*validation*", lambda rows: rows[1].update(goal=None))
    easy = "allenai/ai2_arc/main/ARC-Easy/test*"
    change(easy, lambda rows: rows[1]["choices"]["text"].__setitem__(1, None))
    change("allenai/winogrande/main/*/validation*", lambda rows: rows.__setitem__(2, rows[1]))
    found = _asked(child, full, "piqa", "arc_easy", "winogrande")
    for task, words in {
        "piqa": "question 1 of piqa cannot be asked: goal is null",
        "arc_easy": "question 1 of arc_easy cannot be asked: choices is null",
        "winogrande": "question 2 of winogrande is there twice",
    }.items():
        assert words in str(found[task])
