"""Every task is read from the hub's copies as they are, and what goes wrong is said."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hub.conftest import Child
from hub.loopback import LoopbackHub

from streamline.evaluation.tasks.question_sets import QUESTION_SETS

_COUNTS = """
import json, sys, time
from pathlib import Path
from streamline.errors import StreamlineError
from streamline.evaluation.questions import prepare
from streamline.sources.hub import failures
from streamline.testing.models import tiny_tokenizer

time.sleep = lambda seconds: None
failures.WAITS = (0.0, 0.0, 0.0)
found = {}
tasks, folder = map(json.loads, sys.argv[1:])
own = {} if folder is None else {"include_path": Path(folder)}
for task in tasks:
    try:
        made = prepare([task], tiny_tokenizer(), max_length=4096, limit=3, source="hub", **own)
        found[task] = sum(part.n_docs for part in made.parts) or len(made.texts)
    except StreamlineError as error:
        found[task] = str(error)
print(json.dumps(found))
"""

_YAML = """task: {name}
dataset_path: {path}
dataset_name: {config}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{id}}}}"
doc_to_choice: "{{{{choices.text}}}}"
doc_to_target: "{{{{choices.label.index(answerKey)}}}}"
metric_list:
  - metric: acc
"""

_PUBLISHED = """
from dataclasses import replace
from streamline.evaluation.tasks.question_sets import QUESTION_SETS

QUESTION_SETS["chid"] = replace(QUESTION_SETS["chid"], published={})
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


def _asked(
    child: Child, hub: LoopbackHub, *tasks: str, folder: Path | None = None
) -> dict[str, int | str]:
    done = child(_COUNTS, hub, tasks, None if folder is None else str(folder))
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
    full.fails(r"GET .*baber/piqa.*parquet", status=503, times=1)
    full.fails(r"GET .*ARC-Easy.*parquet", kind="reset", after=10, times=1)
    full.fails(r"HEAD .*cais/mmlu.*README", status=429, times=1)
    full.fails(r"GET .*Rowan/hellaswag.*parquet", kind="damage", times=1)
    tasks = (
        "streamline_gsm8k", "streamline_race_high", "streamline_strategyqa", "piqa", "arc_easy",
        "mmlu_anatomy", "hellaswag",
    )  # fmt: skip
    assert _asked(child, full, *tasks) == dict.fromkeys(tasks, 3)


@pytest.mark.slow
def test_what_will_not_pass_is_said_with_its_reason(full: LoopbackHub, child: Child) -> None:
    datasets = full.root / "datasets"
    full.gated.update({"datasets/openai/gsm8k", "datasets/baber/piqa"})
    full.private.update({"datasets/tasksource/strategy-qa", "datasets/allenai/openbookqa"})
    full.fails(r"GET .*cais/mmlu.*parquet", status=503)
    for name in ("EdinburghNLP/xsum", "Rowan/hellaswag"):
        shutil.rmtree(datasets / name)
    for name in ("ehovy/race/main/high/test", "allenai/ai2_arc/main/ARC-Easy/test"):
        (file,) = datasets.glob(f"{name}*")
        file.write_bytes(b"no parquet")
    for name, field in (("allenai/winogrande", "sentence"), ("dataset-org/c3", "documents")):
        for file in (datasets / name).rglob("*.parquet"):
            Dataset.from_parquet(str(file)).rename_column(field, "other").to_parquet(str(file))
    wanted = {
        "streamline_gsm8k": ("openai/gsm8k", "is gated", "hf auth login"),
        "piqa": ("baber/piqa", "is gated", "hf auth login"),
        "streamline_strategyqa": ("no data set 'tasksource/strategy-qa' that",),
        "openbookqa": ("no data set 'allenai/openbookqa' that", "hf auth login"),
        "streamline_xsum": ("no data set 'EdinburghNLP/xsum' that", "--data-dir"),
        "hellaswag": ("no data set 'Rowan/hellaswag' that", "--data-dir"),
        "streamline_race_high": ("ehovy/race", "could not be read", "arquet", "--data-dir"),
        "arc_easy": ("allenai/ai2_arc (ARC-Easy)", "could not be read", "arquet", "--data-dir"),
        "mmlu_anatomy": ("cais/mmlu (anatomy)", "tried several times", "Check the network"),
        "winogrande": ("winogrande", "allenai/winogrande", "sentence", "--data-revisions"),
        "streamline_c3": ("dataset-org/c3", "documents", "--data-revisions"),
    }
    found = _asked(child, full, *wanted)
    for task, words in wanted.items():
        message = found[task]
        assert isinstance(message, str), task
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


@pytest.mark.slow
def test_sets_of_ones_own_yaml_are_read_in_the_same_way(
    full: LoopbackHub, child: Child, tmp_path: Path
) -> None:
    (tmp_path / "both.yaml").write_text("group: both\ntask: [near, next]\n", encoding="utf-8")
    for name, path in (("near", "openbookqa"), ("next", "ai2_arc"), ("far", "openbook")):
        config = "ARC-Easy" if name == "next" else "main"
        text = _YAML.format(name=name, path=f"allenai/{path}", config=config)
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    full.fails(r"GET .*allenai/openbookqa.*parquet", status=503, times=1)
    full.fails(r"HEAD .*ARC-Challenge.*parquet", status=429, times=1)
    found = _asked(child, full, "near", "both", "arc_challenge_chat", "far", folder=tmp_path)
    far = found.pop("far")
    assert found == {"near": 3, "both": 6, "arc_challenge_chat": 3}
    assert isinstance(far, str)
    assert "no data set 'allenai/openbook' that" in far and "hf auth login" in far


@pytest.mark.slow
def test_a_file_of_its_authors_is_read_once_and_known_by_its_content(
    hub: LoopbackHub, child: Child, tmp_path: Path
) -> None:
    file = hub.root / "datasets/CLUEbenchmark/FewCLUE/main/test_public.json"
    file.parent.mkdir(parents=True)
    row = {"candidates": list("甲乙丙丁戊己庚"), "content": "他#idiom#。", "answer": 3}
    lines = [json.dumps(row | {"id": i}, ensure_ascii=False) for i in range(3)]
    file.write_text("\n".join(lines), encoding="utf-8")
    place = "content/datasets/CLUEbenchmark/FewCLUE/main/test_public.json"
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    code = _PUBLISHED.format((f"{hub.url}/{place}", sha256)) + _COUNTS
    tasks = ["streamline_chid", "streamline_harness_chid"]

    def asked(**environment: str) -> dict[str, int | str]:
        done = child(code, hub, tasks, None, **environment)
        assert done.returncode == 0, done.stderr
        found: dict[str, int | str] = json.loads(done.stdout.splitlines()[-1])
        return found

    fault = hub.fails("GET /content/", kind="damage")
    for said in asked().values():
        assert isinstance(said, str)
        words = (f"{hub.url}/{place}", f"must be {sha256}", "put chid/test_public.json into")
        assert [word for word in words if word not in said] == [], said
    fault.kind, fault.status, fault.times = "status", 503, 1
    assert asked() == dict.fromkeys(tasks, 3)
    before = len(hub.asked)
    assert asked(HF_HUB_OFFLINE="1") == dict.fromkeys(tasks, 3)
    assert len(hub.asked) == before
