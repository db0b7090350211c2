from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from streamline.cli.main import app
from streamline.errors import ConfigError
from streamline.results.predictions import read_predictions
from streamline.results.readers.opencompass import PAPER_DATASETS, find, read

# Both right, lost, gained, both wrong; the first two have a right dense answer.
COUNTS = (5, 2, 1, 4)
N = sum(COUNTS)
BEFORE = [True] * 7 + [False] * 5
AFTER = [True] * 5 + [False] * 2 + [True] + [False] * 4
PPL = [[2.0 + 0.01 * i, 2.0 + 0.07 * i, 2.5] for i in range(N)]


def item(number, right, ppl, labels=("A", "B", "C"), gold="A"):
    options = {
        f"label: {label}": {
            "testing input": "x",
            "prompt": f"question {number} {label}",
            "PPL": value,
            "BPB": 0.5,
        }
        for label, value in zip(labels, ppl, strict=True)
    }
    wrong = next(label for label in labels if str(label) != str(gold))
    prediction = labels[0] if right else wrong
    return {"in-context examples": "", **options, "prediction": prediction, "gold": gold}


def items(marks, start=0, **kwargs):
    return [item(start + i, mark, PPL[i], **kwargs) for i, mark in enumerate(marks)]


def save(folder, name, rows, order=None):
    folder.mkdir(parents=True, exist_ok=True)
    numbered = {str(number): row for number, row in enumerate(rows)}
    keys = list(numbered) if order is None else [str(place) for place in order]
    content = {key: numbered[key] for key in keys}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=4, ensure_ascii=False))


def by_hand(rows, before, after):
    weights = np.exp([np.std(row, ddof=1) for row in rows])
    stable = np.equal(before, after)
    return (weights * stable).sum() / weights.sum()


def figures(dense, pruned, *options):
    result = CliRunner().invoke(app, ["stability", str(dense), str(pruned), "--json", *options])
    assert result.exit_code == 0, result.output
    return {row["task"]: row for row in json.loads(result.stdout)}


@pytest.fixture
def pair(tmp_path):
    dense, pruned = tmp_path / "d" / "predictions" / "m", tmp_path / "p" / "predictions" / "m"
    save(dense, "C3", items(BEFORE))
    save(pruned, "C3", items(AFTER))
    return dense, pruned


def test_the_counts_and_the_stability_are_those_computed_by_hand(pair):
    row = figures(*pair)["C3"]
    assert [row[name] for name in ("both_right", "lost", "gained", "both_wrong")] == list(COUNTS)
    assert row["stability"] == round(by_hand(PPL, BEFORE, AFTER), 4)
    assert row["agreement"] == 0.75
    assert (row["accuracy_dense"], row["accuracy_pruned"]) == (
        round(7 / 12, 4),
        0.5,
    )


def test_the_table_shows_four_decimals_on_one_line(pair):
    result = CliRunner().invoke(app, ["stability", *map(str, pair)], env={"COLUMNS": "200"})
    line = next(line for line in result.stdout.splitlines() if line.startswith("C3"))
    value = f"{by_hand(PPL, BEFORE, AFTER):.4f}"
    assert line.split()[:2] == ["C3", value]
    assert line.split()[3:] == ["0.7500", "5", "2", "1", "4", "12", "0.5833", "0.5000", "acc"]


def test_shuffled_items_change_nothing(pair, tmp_path):
    expected = figures(*pair)
    order = [3, 0, 11, 7, 5, 1, 2, 10, 4, 9, 8, 6]
    save(tmp_path / "keys", "C3", items(AFTER), order)
    assert figures(pair[0], tmp_path / "keys") == expected
    save(tmp_path / "anew", "C3", [items(AFTER)[place] for place in order])
    assert figures(pair[0], tmp_path / "anew") == expected


def test_the_release_mode_depends_on_the_order(pair, tmp_path):
    weights = np.exp([np.std(row) for row in PPL])
    released = figures(*pair, "--compat", "release")["C3"]["stability"]
    assert released == round(weights[:9].sum() / weights.sum(), 4)
    assert released != figures(*pair, "--ddof", "0")["C3"]["stability"]
    order = list(range(N))[::-1]
    for name, marks in (("rd", BEFORE), ("rp", AFTER)):
        save(tmp_path / name, "C3", [items(marks)[place] for place in order])
    turned = figures(tmp_path / "rd", tmp_path / "rp", "--compat", "release")["C3"]["stability"]
    assert turned == round(weights[3:].sum() / weights.sum(), 4)


def test_shards_are_merged_in_numeric_order(tmp_path):
    rows, halves = items(BEFORE * 1), tmp_path / "s"
    save(tmp_path / "w", "hellaswag", rows)
    for number in range(12):
        save(halves, f"hellaswag_{number}", rows[number : number + 1])
    whole, merged = read(tmp_path / "w")[0], read(halves)[0]
    assert list(merged) == ["hellaswag"]
    assert merged["hellaswag"].hashes == whole["hellaswag"].hashes
    assert merged["hellaswag"].correct.tolist() == BEFORE


def test_a_missing_shard_is_refused_and_a_whole_file_wins(tmp_path):
    rows = items(BEFORE)
    for number in (0, 2):
        save(tmp_path, f"piqa_{number}", rows[:2])
    with pytest.raises(ConfigError, match="piqa has no shard 1 of 3"):
        read(tmp_path)
    save(tmp_path, "piqa", rows)
    tasks = read(tmp_path).tasks
    assert list(tasks) == ["piqa"]
    assert len(tasks["piqa"].ids) == N


def test_a_name_that_ends_in_a_number_is_no_shard(tmp_path):
    save(tmp_path, "task_7", items(BEFORE))
    assert list(read(tmp_path)[0]) == ["task_7"]


def test_predictions_and_golds_are_compared_as_text(tmp_path):
    rows = items([True, False], labels=(0, 1, 2), gold="0")
    save(tmp_path, "winogrande", rows)
    assert read(tmp_path)[0]["winogrande"].correct.tolist() == [True, False]


def test_ll_mode_is_read(tmp_path):
    rows = items([True, False])
    for row in rows:
        for key in [key for key in row if key.startswith("label: ")]:
            row[key] = {"testing input": "x", "Loglikelihood": -row[key]["PPL"]}
    save(tmp_path, "winogrande", rows)
    answers = read(tmp_path)[0]["winogrande"]
    assert answers.nll[1].tolist() == PPL[1]
    assert answers.nll_name == "summed log-likelihood"


def test_the_twelve_data_sets_make_twelve_rows_with_subjects_averaged(tmp_path):
    names = [name for name in PAPER_DATASETS if name not in ("mmlu", "cmmlu")]
    names += ["lukaemon_mmlu_anatomy", "lukaemon_mmlu_virology", "cmmlu-agronomy", "cmmlu-virology"]
    for name in names:
        save(tmp_path / "d", name, items(BEFORE))
        small = name in ("lukaemon_mmlu_virology", "cmmlu-virology")
        if small:
            save(tmp_path / "d", name, items([True]))
        save(tmp_path / "p", name, items([False] if small else AFTER))
    rows = figures(tmp_path / "d", tmp_path / "p")
    assert set(rows) == set(PAPER_DATASETS)
    assert rows["mmlu"]["agreement"] == 0.375
    assert rows["cmmlu"]["stability"] == round(by_hand(PPL, BEFORE, AFTER) / 2, 4)
    assert (rows["mmlu"]["subjects"], rows["mmlu"]["n"]) == (2, 13)


def test_what_is_left_out_is_said(tmp_path):
    save(tmp_path / "d", "C3", items(BEFORE))
    save(tmp_path / "d", "BoolQ", items(BEFORE))
    save(tmp_path / "p", "C3", items(AFTER))
    (tmp_path / "p" / "tmp_BoolQ.json").write_text("{}")
    save(tmp_path / "p", "gsm8k", [{"origin_prompt": "x", "prediction": "y", "gold": "z"}])
    arguments = ["stability", str(tmp_path / "d"), str(tmp_path / "p")]
    result = CliRunner().invoke(app, arguments)
    assert "BoolQ: only in" in result.stderr
    assert "tmp_BoolQ: unfinished run" in result.stderr
    assert "gsm8k: not in PPL or LL mode" in result.stderr


def test_different_questions_are_refused(pair):
    save(pair[1], "C3", items(AFTER, start=100))
    with pytest.raises(ConfigError, match=r"Task C3: .*12 questions .* another doc_hash"):
        CliRunner().invoke(app, ["stability", *map(str, pair)], catch_exceptions=False)


def test_the_folder_is_found_from_above_and_several_are_refused(pair, tmp_path):
    dense, _ = pair
    assert find(tmp_path / "d") == dense
    assert find(dense.parent) == dense
    assert read_predictions(tmp_path / "d").kind == "opencompass"
    with pytest.raises(ConfigError, match=r"several runs; give one of: d/predictions/m, p/pred"):
        find(tmp_path)


def test_malformed_files_are_refused(tmp_path):
    save(tmp_path, "C3", items(BEFORE))
    broken = items(BEFORE)
    del broken[3]["gold"]
    save(tmp_path, "C3", broken)
    with pytest.raises(ConfigError, match="item 3 has no gold"):
        read(tmp_path)
    broken = items(BEFORE)
    del broken[2]["label: B"]["PPL"]
    save(tmp_path, "C3", broken)
    with pytest.raises(ConfigError, match="item 2 has no prediction, or a PPL"):
        read(tmp_path)
    (tmp_path / "C3.json").write_text('{"0": {}, "2": {}}')
    with pytest.raises(ConfigError, match="gaps near 1, 2"):
        read(tmp_path)
    (tmp_path / "C3.json").write_text("[]")
    with pytest.raises(ConfigError, match="no OpenCompass prediction file"):
        read(tmp_path)
