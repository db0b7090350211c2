from __future__ import annotations

import pandas as pd
import pytest
from damages import DAMAGES

from streamline.errors import ConfigError
from streamline.results.record import Record
from streamline.results.samples import COLUMNS, read_samples, samples_path, write_samples


def row(option=0, **changes):
    return {
        "task": "piqa",
        "doc_id": 0,
        "doc_hash": "h",
        "option": option,
        "loglikelihood": -3.25,
        "n_tokens": 4,
        "n_bytes": 17,
        "gold": 1,
        "chosen": 0,
        "correct": False,
        "metric": "acc",
        **changes,
    }


def test_rows_come_back_as_written(tmp_path):
    path = tmp_path / "a" / "x.parquet"
    write_samples(path, [row(0, loglikelihood=-0.1 - 1e-16), row(1, prompt_nll=2.5)])
    frame = read_samples(path)
    assert list(frame.columns) == list(COLUMNS)
    assert frame["loglikelihood"].tolist() == [-0.1 - 1e-16, -3.25]
    assert frame["prompt_nll"].isna().tolist() == [True, False]
    assert frame["prompt_tokens"].isna().all()
    assert frame["n_bytes"].tolist() == [17, 17]
    assert not list(path.parent.glob("*.tmp"))


def test_no_rows_make_an_empty_file(tmp_path):
    write_samples(tmp_path / "x.parquet", [])
    assert read_samples(tmp_path / "x.parquet").empty


def test_generated_answers_need_no_likelihood(tmp_path):
    bare = {
        key: value
        for key, value in row().items()
        if key not in ("loglikelihood", "n_tokens", "n_bytes", "gold", "chosen")
    }
    write_samples(tmp_path / "x.parquet", [bare])
    assert read_samples(tmp_path / "x.parquet")["gold"].isna().all()


def test_bad_rows_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    with pytest.raises(ConfigError, match="unknown keys.*'colour'"):
        write_samples(path, [row(colour="red")])
    with pytest.raises(ConfigError, match=r"miss \['metric'\]"):
        write_samples(path, pd.DataFrame([row()]).drop(columns="metric"))
    with pytest.raises(ConfigError, match="null in doc_hash"):
        write_samples(path, [row(doc_hash=None)])
    with pytest.raises(ConfigError, match="Option 0 of question 0 of task piqa occurs twice"):
        write_samples(path, [row(), row()])
    with pytest.raises(ConfigError, match="do not fit"):
        write_samples(path, [row(doc_id="first")])
    assert not path.exists()


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="No samples at"):
        read_samples(tmp_path)
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match="is not a samples file"):
        read_samples(tmp_path / "x.parquet")


def test_each_cell_has_a_file_of_its_own(tmp_path):
    cells = [
        {"model": model, "method": "m", "sparsity": sparsity, "status": "ok"}
        for model in ("/a/tiny", "/b/tiny", "org/tiny")
        for sparsity in (0.12, 0.125)
    ]
    paths = {samples_path(tmp_path, Record.build(cell)) for cell in cells}
    assert len(paths) == 6
    assert all(path.name.startswith("tiny--m--0.12") for path in paths)
    assert all(path.parent == tmp_path / "samples" for path in paths)


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "missing"])
def test_rows_that_came_to_harm_are_refused_by_name(tmp_path, damage):
    path = tmp_path / "a.parquet"
    rows = [
        {"task": "piqa", "doc_id": i, "doc_hash": f"h{i}", "option": 0, "correct": i % 2 == 0}
        | {"metric": "acc", "loglikelihood": -float(i)}
        for i in range(200)
    ]
    write_samples(path, rows)
    DAMAGES[damage](path)
    with pytest.raises(ConfigError, match=r"a\.parquet"):
        read_samples(path)


def test_any_flipped_bit_of_rows_is_found(tmp_path):
    path = tmp_path / "a.parquet"
    write_samples(path, [row(0, loglikelihood=-0.5), row(1)])
    whole, frame = path.read_bytes(), read_samples(path)
    for place in range(0, len(whole), 7):  # data, statistics, footer
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert read_samples(path).equals(frame)  # a bit of the checksum's own name
        except ConfigError as error:
            assert "a.parquet" in str(error)
