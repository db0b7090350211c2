"""Per-question results: one parquet row for each question and option.

The evaluation writes one file per cell; stability, agreement and paired statistics are computed
from these files alone, long after the model is gone. The checksum of the whole file stands in its
schema's metadata and is checked when it is read; files of others have none. A task that generates
text has one row per question (option 0) and no likelihoods to compare.

Example::

    write_samples(samples_path(out, record), rows)
    frame = read_samples(samples_path(out, record))
    frame.groupby("task")["correct"].mean()
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline.errors import ConfigError
from streamline.files import write_bytes_atomic
from streamline.hashing import NO_CHECKSUM, checksum_in, content_key, with_checksum

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from streamline.results.record import Record

__all__ = ["COLUMNS", "read_samples", "samples_checksum", "samples_path", "write_samples"]

_MARK = NO_CHECKSUM.rstrip("0").encode("ascii")

# name -> (arrow type, may be null, meaning)
COLUMNS: dict[str, tuple[str, bool, str]] = {
    "task": ("string", False, "the task's name in the record"),
    "doc_id": ("int64", False, "index of the question in the task's split"),
    "doc_hash": ("string", False, "hash of the question, the same for every model"),
    "option": ("int64", False, "index of the option in the question"),
    "loglikelihood": ("float64", True, "summed log-probability of the scored tokens"),
    "n_tokens": ("int64", True, "scored tokens"),
    "n_bytes": ("int64", True, "UTF-8 bytes of the continuation"),
    "prompt_nll": ("float64", True, "mean NLL of prompt and option together; full-prompt tasks"),
    "prompt_tokens": ("int64", True, "tokens that prompt_nll averages over"),
    "gold": ("int64", True, "the right option"),
    "chosen": ("int64", True, "the option chosen under the task's metric"),
    "correct": ("bool", False, "whether the question counts as right under the task's metric"),
    "metric": ("string", False, "the metric that chose, such as acc or acc_norm"),
}


def write_samples(path: str | Path, rows: pd.DataFrame | Iterable[Mapping[str, Any]]) -> None:
    """Write a cell's rows as parquet, whole or not at all.

    Args:
        path: The final name; parent folders are made.
        rows: A frame or mappings with the keys of ``COLUMNS``; the nullable ones may be absent.

    Raises:
        ConfigError: If a required key is missing or null, a key is unknown, a value has the wrong
            type, or a (task, doc_id, option) occurs twice.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    given = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    unknown = sorted(set(map(str, given.columns)) - set(COLUMNS))
    missing = [
        name for name, (_, nullable, _) in COLUMNS.items() if not nullable and name not in given
    ]
    if len(given) and (unknown or missing):
        raise ConfigError(
            f"Sample rows miss {missing or 'nothing'} and have unknown keys {unknown or 'none'}; "
            f"the columns are {', '.join(COLUMNS)}."
        )
    frame = given.reindex(columns=list(COLUMNS))
    holes = [
        name for name, (_, nullable, _) in COLUMNS.items() if not nullable and frame[name].hasnans
    ]
    if holes:
        raise ConfigError(f"Sample rows have null in {', '.join(holes)}, which must be given.")
    twice = frame.duplicated(["task", "doc_id", "option"])
    if twice.any():
        row = frame[twice].iloc[0]
        raise ConfigError(
            f"Option {row['option']} of question {row['doc_id']} of task {row['task']} occurs "
            "twice; write each option once."
        )
    try:
        table = pa.Table.from_pandas(frame, schema=_schema(), preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ConfigError(f"Sample rows do not fit the columns of {path}: {error}") from None
    metadata = {**(table.schema.metadata or {}), b"checksum": NO_CHECKSUM.encode("ascii")}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
    write_bytes_atomic(path, *with_checksum(buffer.getvalue()))


def samples_checksum(path: str | Path) -> str | None:
    """The checksum of a samples file, or None if it is missing, damaged, or carries none."""
    try:
        return checksum_in(Path(path).read_bytes())
    except OSError:
        return None


def read_samples(path: str | Path | Sequence[Path]) -> pd.DataFrame:
    """Read a cell's rows, or those of several files one after the other.

    Args:
        path: A parquet file, a folder of them, or files.

    Returns:
        A frame with the columns of ``COLUMNS``, in the order in which the rows were written.
        Missing numbers are NaN in float columns and ``pd.NA`` in integer ones.

    Raises:
        ConfigError: If there is no such file, or it is damaged or not of this form.
    """
    import pandas as pd
    import pyarrow as pa

    if isinstance(path, (str, Path)):
        source = Path(path)
        files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
    else:
        files = list(path)
    if not files or not all(file.is_file() for file in files):
        raise ConfigError(f"No samples at {path}. Give a parquet file that an evaluation wrote.")
    rows = pa.concat_tables([_read(file) for file in files])
    return rows.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)


def _read(file: Path) -> pa.Table:
    """The rows of one file, which are those that were written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = file.read_bytes()
    if _MARK in data and checksum_in(data) is None:
        raise ConfigError(
            f"{file} is damaged: its content does not have its checksum. Remove it and run "
            "again to have it made anew."
        )
    try:
        rows = pq.ParquetFile(pa.BufferReader(data)).read()
        return rows.select(list(COLUMNS)).cast(_schema())
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{file} is not a samples file ({error}); the columns are {', '.join(COLUMNS)}."
        ) from None


_LONGEST = 80  # letters of a model's or a method's name in that of a file


def samples_path(directory: str | Path, record: Record) -> Path:
    """Where a cell's samples lie: a readable name that no other cell of the folder has.

    Args:
        directory: The run's folder.
        record: The cell.

    Returns:
        ``directory/samples/MODEL--METHOD--SPARSITY--sSEED--RECOVERY--XXXXXXXX.parquet``.
    """
    words = [
        Path(record.model).name[:_LONGEST],
        record.method[:_LONGEST],
        repr(record.sparsity),
        f"s{record.seed}",
        record.recovery,
        content_key(list(record.identity))[:8],
    ]
    name = "--".join(re.sub(r"[^A-Za-z0-9._-]+", "_", word) for word in words)
    return Path(directory) / "samples" / f"{name}.parquet"


def _schema() -> pa.Schema:
    """The arrow schema of ``COLUMNS``."""
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "int64": pa.int64(),
        "float64": pa.float64(),
        "bool": pa.bool_(),
    }
    return pa.schema(
        [pa.field(name, types[kind], nullable) for name, (kind, nullable, _) in COLUMNS.items()]
    )
