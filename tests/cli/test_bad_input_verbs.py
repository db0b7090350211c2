"""Bad input of the verbs that read what runs and other tools left, and of all verbs' own flags."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bad_input import Shown

_LONG = "x" * 300
_ROWS = [
    # a run's folder
    (
        "report r-latin",
        "r-latin/results.json cannot be read: byte 27 is not UTF-8 text. It is written whole",
    ),
    ("report r-empty", "r-empty/results.json is not JSON"),
    ("report r-list", "r-list/results.json has schema None"),
    ("report r-deep", "r-deep/results.json is not"),
    ("report r-digits", "r-digits/results.json is not"),
    ("report r-schema", "has schema 7; this version reads schema 1"),
    ("report r-records", "r-records/results.json has schema 1; this version reads"),
    (
        "report r-value",
        "r-value/results.json: ... tasks.piqa: ... acc is 1.7, and lies between 0 and 1",
    ),
    (
        "report r-nan",
        "r-nan/results.json is not JSON (NaN is no number). ... restore it or remove it",
    ),
    (
        "report r-twice",
        "r-twice/results.json: the cell ... is there twice. Take one of the two records out, or",
    ),
    (
        "report j-latin",
        "j-latin/run.json cannot be read: byte 10 is not UTF-8 text. Restore it, or",
    ),
    ("report j-list", "j-list/run.json holds no object of settings"),
    ("report empty", "No results.json in empty. Give the folder that a run wrote with --out."),
    ("report nowhere", "No results.json in nowhere"),
    ("report ''", "give the folder that a run wrote"),
    (
        "report ran --suite nothing",
        "unknown suite 'nothing'. Did you mean: reasoning? Available: bytes, calibration, cost",
    ),
    # records to compare
    ("compare", "Try 'streamline-bench compare -h' for help. ... Missing argument 'records'."),
    (
        "compare r-latin",
        "r-latin/results.json cannot be read: byte 27 is not UTF-8 text. It is written whole",
    ),
    ("compare r-deep", "r-deep/results.json is not"),
    ("compare p-junk", "is not a samples file"),
    ("compare p-empty", "is not a samples file"),
    (
        "compare r-twice",
        "r-twice/results.json: the cell ... is there twice. Take one of the two records out, or",
    ),
    ("compare junk.parquet", "junk.parquet is not a samples file"),
    (
        "compare file",
        "file holds no predictions: neither results.json or *.parquet of this package, nor",
    ),
    ("compare empty", "empty holds no predictions"),
    (
        "compare nowhere",
        "nowhere does not exist. Give a samples parquet, a run's folder, a folder of",
    ),
    ("compare ''", "'' names no file or folder; give one that is there"),
    (
        "compare log-latin",
        "jsonl cannot be read: byte 15 is not UTF-8 text. Run lm-eval with --log_samples",
    ),
    ("compare log-cut", ".jsonl:1 is not JSON ( ... ). Run lm-eval with --log_samples again."),
    (
        "compare log-list",
        ".jsonl:1 is no lm-eval sample: a line is a JSON object with ... --log_samples again.",
    ),
    ("compare ran:dense", "A comparison needs two models or more"),
    ("compare ran:shortgpt@x", "sparsity 'x' is not a number"),
    (
        "compare ran:nothing",
        "ran:nothing: no finished cells fit. Choose one with PATH:METHOD@ ... There are",
    ),
    (
        "compare ran:shortgpt@0.25,seed=",
        "'seed=' is no KEY=VALUE with a key of model, method, sparsity, seed, recovery",
    ),
    ("compare ran:shortgpt@0.25,color=red", "'color=red' is no KEY=VALUE"),
    ("compare ran --alpha 0", "'--alpha': Input should be greater than or equal to 0.0001"),
    ("compare ran --alpha x", "'--alpha': Input should be a valid number"),
    ("compare ran --seed -1", "'--seed': Input should be greater than or equal to 0"),
    ("compare ran --seed 1.5", "'--seed': Input should be a valid integer"),
    ("compare ran --reference nothing", "and the reference nothing"),
    ("compare ran --reference ''", "and the reference "),
    ("compare ran:dense ran:dense", "ran:dense is given twice; give each record once"),
    # two sets of predictions
    ("stability ran:dense", "Missing argument 'pruned'."),
    ("stability ran:dense ran", "ran holds 12 pruned models"),
    ("stability ran nowhere", "nowhere does not exist. Give a samples parquet, a run's folder"),
    ("stability '' ''", "'' names no file or folder; give one that is there"),
    (
        "stability r-latin ran:shortgpt@0.25",
        "r-latin/results.json cannot be read: byte 27 is not UTF-8 text. It is written whole",
    ),
    ("stability p-junk:dense p-junk:shortgpt@0.25", "is not a samples file"),
    (
        "stability log-latin log-latin",
        "jsonl cannot be read: byte 15 is not UTF-8 text. Run lm-eval with --log_samples",
    ),
    ("stability log-fields log-fields", "its rows carry no acc_norm or acc or ... name a metric"),
    (
        "stability file file",
        "file holds no predictions: neither results.json or *.parquet of this package, nor",
    ),
    (
        "stability ran:dense ran:shortgpt@0.25 --ddof 5",
        "Task piqa: ddof is 5; give 1 (the paper) or 0 (the released script)",
    ),
    ("stability ran:dense ran:shortgpt@0.25 --ddof x", "'--ddof': Input should be a valid integer"),
    ("stability ran:dense ran:shortgpt@0.25 --compat v9", "'v9' is not one of 'release'"),
    ("stability ran:dense ran:shortgpt@0.25 --metric acc", "--metric chooses among the metrics"),
    # cells to remove
    ("rm ran", "Missing argument 'CELL...'."),
    ("rm ran ''", "names no cell; write METHOD@SPARSITY,KEY=VALUE"),
    ("rm ran ,", "names no cell; write METHOD@SPARSITY,KEY=VALUE"),
    ("rm ran nothing", "unknown cell of ran 'nothing'"),
    ("rm ran shortgpt@many", "sparsity 'many' is not a number"),
    ("rm ran shortgpt,color=1", "'color=1' is no KEY=VALUE"),
    ("rm nowhere dense", "No results.json in nowhere"),
    ("rm file dense", "file is a file"),
    (
        "rm r-latin dense",
        "r-latin/results.json cannot be read: byte 27 is not UTF-8 text. It is written whole",
    ),
    ("rm r-records dense", "r-records/results.json has schema 1; this version reads"),
    # the cache
    ("cache ls --run nowhere", "nowhere is no run's folder"),
    ("cache ls --run file", "file is no run's folder"),
    ("cache ls extra", "Got unexpected extra argument(s) (extra)"),
    ("cache clear nothing", "unknown kind of cache 'nothing'"),
    ("cache clear ../data --yes", "unknown kind of cache '../data'"),
    ("cache clear --run empty", "empty is no run's folder"),
    ("cache nothing", "No such command 'nothing'"),
    # methods
    ("validate", "Missing argument 'method'."),
    ("validate nothing", "unknown method 'nothing'"),
    ("validate ''", "unknown method ''"),
    ("validate all", "unknown method 'all'"),
    ("validate no.such:X", "cannot be imported: ModuleNotFoundError"),
    ("validate json:loads", "not a class derived from streamline.method.Method"),
    ("validate shortgpt+x=1", "'x=1' in 'shortgpt+x=1' does not set a field"),
    ("validate sleb+n_samples=true", "true and false are no numbers"),
    ("validate dense --families x", "unknown family 'x'"),
    ("validate dense --families ''", "--families is empty"),
    ("new-method", "Missing argument 'name'."),
    ("new-method ''", "'' cannot name a method"),
    ("new-method ../x", "'../x' cannot name a method"),
    ("new-method x y", "unexpected extra argument"),
    (f"new-method {_LONG}", "cannot name a method: it is too long"),
    ("new-method model", "model exists"),
    ("new-method class", "'class' cannot name a method"),
    # lists
    ("ls", "Missing argument 'kind'. Choose from: methods, models, tasks, suites"),
    ("ls nothing", "'nothing' is not one of"),
    ("ls methods extra", "unexpected extra argument"),
    ("ls methods --schema", "--schema is that of suites"),
    # checkpoints
    ("verify nowhere", "nowhere has no self_test.safetensors; only saved checkpoints can be"),
    ("verify model", "model has no self_test.safetensors; only saved checkpoints can be"),
    ("verify file", "file has no self_test.safetensors; only saved checkpoints can be verified"),
    ("prune model --method shortgpt", "Missing option '--out'."),
    ("prune model --method shortgpt --sparsity 0.3 --out data", "data exists and is not empty"),
    ("prune model --method shortgpt --sparsity 0.3 --out ''", "name a folder that is to be made"),
    ("prune model --method shortgpt --sparsity 0.3 --out /", "name a folder that is to be made"),
    (
        f"prune model --method shortgpt --sparsity 0.3 --out {_LONG}",
        "out: the name is too long: 255 bytes are",
    ),
    ("prune model --method '' --sparsity 0.3 --out OUT", "methods: string should have at least"),
    ("prune '' --method shortgpt --sparsity 0.3 --out OUT", "models: string should have at least"),
    ("prune model --method shortgpt --sparsity '' --out OUT", "sparsities: at least one value is"),
    ("prune model --method shortgpt --sparsity .3 --seed x --out OUT", "seeds: input should be"),
    ("prune model --method shortgpt --sparsity .3 --suite x --out OUT", "unknown suite 'x'"),
    ("prune model --method x:Y --sparsity .3 --out OUT", "cannot be imported"),
    ("prune file --method shortgpt --sparsity 0.3 --out OUT", "There is no model folder 'file'"),
    # one model
    ("evaluate model --tasks piqa", "Missing option '--out'."),
    ("evaluate model --tasks piqa --out ''", "give the name of a file, such as out.json"),
    ("evaluate model --tasks piqa --out /", "give the name of a file, such as out.json"),
    (f"evaluate model --tasks piqa --out {_LONG}", "the name is too long"),
    ("evaluate model --tasks piqa --out file/x.json", "out: file is a file"),
    ("evaluate model --tasks '' --out OUT.json", "tasks: at least one value is needed"),
    ("evaluate model --tasks nothing --out OUT.json", "unknown task or group 'nothing'"),
    ("evaluate '' --tasks piqa --out OUT.json", "models: string should have at least 1 char"),
    ("evaluate data --tasks piqa --out OUT.json", "Model folder data holds no config.json"),
    ("evaluate model --tasks piqa --suite s.yaml --out OUT.json", "No such option"),
    # the command itself
    ("run", "nothing to run: --models and --methods not given"),
    ("run --nothing", "No such option"),
    ("run --models", "requires an argument"),
    ("--models model --methods dense extra", "unexpected extra argument"),
    ("evalute model", "unknown verb 'evalute'. Did you mean: evaluate"),
    ("''", "unknown verb ''"),
]


@pytest.mark.parametrize(("line", "message"), _ROWS)
def test_bad_input_of_a_verb_is_refused(
    line: str, message: str, damaged_runs: Path, bench: Callable[..., Shown]
) -> None:
    bench(line).refuses(message)
