"""Bad settings: flags and the keys of a suite, each refused in one message before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from bad_input import Shown

_RUN = "--models model --methods dense"
_MANY = "9" * 5_000
_FLAGS = [
    # values
    (f"{_RUN} --sparsities 0.25,0.250", "sparsities: 0.25 given twice"),
    (f"{_RUN} --sparsities 0.1,1e-1", "sparsities: 0.1 given twice"),
    (f"{_RUN} --sparsities lots", "sparsities: input should be a valid number"),
    (f"{_RUN} --sparsities nan", "sparsities: input should be a finite number"),
    (f"{_RUN} --sparsities ,", "sparsities: at least one value is needed"),
    (f"{_RUN} --seed 1,01", "seeds: 1 given twice"),
    (f"{_RUN} --seed 9223372036854775808", "seeds: input should be less than 9223372"),
    (f"{_RUN} --seed -1", "seeds: input should be greater than or equal to 0"),
    (f"{_RUN} --seed {_MANY}", "seeds: "),
    (f"{_RUN} --limit 1e23", "limit: input should be a valid integer"),
    (f"{_RUN} --limit 99999999999999999999", "limit: input should be less than 922"),
    (f"{_RUN} --limit {_MANY}", "limit: "),
    (f"{_RUN} --limit ''", "limit: input should be a valid integer"),
    (f"{_RUN} --train-tokens 0", "training.n_tokens: input should be greater than or equal to 1"),
    (f"{_RUN} --train-tokens {_MANY}", "training.n_tokens: "),
    (f"{_RUN} --calibration-samples none", "calibration.n_samples: input should be a valid int"),
    (f"{_RUN} --perplexity some", "perplexity.n_tokens: input should be a valid integer"),
    (f"{_RUN} --batch-tokens -5", "batch_tokens: input should be greater than or equal to 1"),
    (f"{_RUN} --dtype int8", "dtype: input should be 'auto', 'float32', 'bfloat16' or 'float16'"),
    (f"{_RUN} --device ''", "device: use auto, cpu, mps, cuda, or cuda:N"),
    (f"{_RUN} --device-map spread", "device_map: input should be 'auto', 'balanced'"),
    (f"{_RUN} --executor lsf", "executor: input should be 'local', 'ray' or 'slurm'"),
    (f"{_RUN} --recovery heal", "recovery: input should be 'none', 'lora' or 'kd'"),
    (f"{_RUN} --recovery lora,lora", "recovery: lora given twice"),
    (f"{_RUN} --objective l1", "training.objective: input should be 'mse' or 'lm'"),
    (f"{_RUN} --data cloud", "data: input should be 'auto', 'hub' or 'packaged'"),
    (f"{_RUN} --data-dir nowhere", "data_dir: path does not point to a directory"),
    (f"{_RUN} --include-path nowhere", "include_path: path does not point to a directory"),
    (f"{_RUN} --stream --device-map auto", "bad settings: stream reads one layer at a time"),
    (f"{_RUN} --tasks piqa,piqa", "tasks: piqa given twice"),
    (f"{_RUN} --tasks ''", "tasks: at least one value is needed"),
    (f"{_RUN} --tasks heldout@many", "heldout@many"),
    ("--models model,model --methods dense", "models: model given twice"),
    ("--models model,./model/ --methods dense", "models: model and ./model/ are one folder"),
    ("--models '' --methods dense", "--models not given"),
    ("--models no/such/model --methods dense", "no/such/model"),
    ("--models model --methods ''", "--methods not given"),
    ("--models model --methods dense,dense", "methods: dense given twice"),
    ("--models model --methods all,dense", "'all' already means every method"),
    # folders
    (f"{_RUN} --out ''", "out: give a folder that is the run's own"),
    (f"{_RUN} --out /", "out: give a folder that is the run's own"),
    (f"{_RUN} --out data", "data is not empty and no run's folder"),
    (f"{_RUN} --out data --dry-run", "data is not empty and no run's folder"),
    (f"{_RUN} --out {'x' * 300}", "out: the name is too long"),
    # what a run takes up, leaves out and asks
    (f"{_RUN} --plan nothing", "nothing holds no plan"),
    (f"{_RUN} --plan ''", "'' names no file or folder"),
    (f"{_RUN} --plan s.yaml", "s.yaml is not JSON ("),
    (f"{_RUN} --redo nothing --out OUT", "No results.json in"),
    (f"{_RUN} --num-fewshot -1", "prompting.num_fewshot: input should be greater"),
    (f"{_RUN} --num-fewshot {10**30}", "prompting.num_fewshot: input should be less"),
    (f"{_RUN} --num-fewshot true", "prompting.num_fewshot: input should be a valid integer"),
    (f"{_RUN} --system-instruction ''", "prompting.system_instruction: string should have"),
    # texts
    (f"{_RUN} --calibration :heldout", "A text's name is empty"),
    (f"{_RUN} --calibration ''", "A text's name is empty"),
    (f"{_RUN} --calibration packaged:foo", "Text 'packaged:foo' does not exist"),
    # suites by flag
    ("--suite s.yml", "unknown suite file 's.yml'"),
    ("--suite ''", "unknown suite ''"),
    ("--suite data", "unknown suite 'data'"),
    # fields of methods
    ("--models model --methods sleb+n_samples=2+n_samples=3", "n_samples is set twice"),
    ("--models model --methods sleb+n_samples=", "n_samples= of sleb has no value"),
    (
        "--models model --methods sleb+n_samples=true",
        "n_samples=true of sleb is not accepted: true and",
    ),
    ("--models model --methods sleb+n_samples", "'n_samples' in 'sleb+n_samples' does not set"),
    ("--models model --methods sleb+n_sample=2", "'n_sample=2' in 'sleb+n_sample=2' does not"),
    (f"--models model --methods sleb+n_samples={_MANY}", "of sleb is not accepted: "),
    ("--models model --methods replaceme+ridge=.nan", "ridge=.nan of replaceme is not accepted"),
    ("--models model --methods replaceme+ridge=.inf", "ridge=.inf of replaceme is not accepted"),
    ("--models model --methods 'sleb+n_samples=&a [*a]'", "of sleb is not accepted"),
    ("--models model --methods sleb+", "'' in 'sleb+' does not set a field"),
    ("--models model --methods +", "unknown method ''"),
    ("--models model --methods ':'", "':' in streamline.methods"),
    ("--models model --methods json:", "'json:' in streamline.methods"),
    ("--models model --methods json:loads", "not a class derived from streamline.method.Method"),
    ("--models model --methods no.such:Thing", "cannot be imported: ModuleNotFoundError"),
    # the flag is at fault, not the suite
    ("--suite s.yaml --stream --device-map auto", "error: bad settings: stream reads one layer"),
    ("--suite s.yaml --limit 0", "error: bad settings: limit: input should be greater"),
]


@pytest.mark.parametrize(("line", "message"), _FLAGS)
def test_a_bad_flag_is_refused(line: str, message: str, bench: Callable[..., Shown]) -> None:
    bench(line).refuses(message)


def _bomb(depth: int) -> str:
    lines = ["report: {a0: &a0 [p,p,p,p,p,p,p,p,p]"]
    lines += [f", a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "".join(lines) + f"}}\nmodels: *a{depth - 1}\nmethods: [dense]\n"


_SUITES: list[tuple[str | bytes | dict[str, Any], str]] = [
    # what is no suite
    ("", "got an empty file"),
    ("hello", "got str"),
    ("models: a\n---\nmodels: b\n", "is not YAML in UTF-8"),
    ("models:\n\t- a\n", "is not YAML in UTF-8"),
    ("title: \xe9".encode("latin-1"), "is not YAML in UTF-8"),
    (bytes(range(256)), "is not YAML in UTF-8"),
    ("models: !!python/object/apply:os.getcwd []\n", "is not YAML in UTF-8"),
    ("models: !include /etc/passwd\n", "is not YAML in UTF-8"),
    ("[" * 20_000, "is not YAML in UTF-8: it is nested too deeply"),
    ("? [a, b]\n: 1\n", "is not YAML in UTF-8"),
    (f"limit: {_MANY}\n", "is not YAML in UTF-8"),
    ("when: 2024-99-99\n", "is not YAML in UTF-8"),
    (_bomb(5), "its anchors stand for more than"),
    (_bomb(9), "its anchors stand for more than"),
    ("models: &a [*a]\nmethods: dense\n", "an anchor stands for itself"),
    ("title: " + "x" * 2_000_000, "is larger than"),
    # keys
    ("models: a\nmethods: dense\nmodels: b\n", "'models' is given twice (line 3)"),
    ("models: a\nlimit: 1\nlimit: 1\n", "'limit' is given twice (line 3)"),
    ("models: a\ntraining: {n_tokens: 5, epochs: 1, n_tokens: 6}\n", "'n_tokens' is given twice"),
    ("1: 2\nmodels: a\n", "must be a mapping of a run's fields"),
    ({"sparsitys": [0.1]}, "sparsitys is not a field of a run; did you mean sparsities?"),
    ({"training": {"n_token": 5}}, "training.n_token is not a field of a run; did you mean n_tok"),
    ({"lora": {"rank": 5}}, "lora.rank is not a field of a run"),
    ({"training": {"post_train": {"epoch": 5}}}, "post_train.epoch is not a field of a run"),
    ({"suite": "x"}, "cannot set 'suite'; it belongs on the command line"),
    ({"dry_run": True}, "cannot set 'dry_run'; it belongs on the command line"),
    # values
    ({"models": None}, "--models not given"),
    ({"models": {"a": "b"}}, "models: input should be a valid tuple"),
    ({"models": [["a"]]}, "models: input should be a valid string"),
    ({"methods": True}, "methods: "),
    ({"limit": True}, "limit: input should be a number, not true or false"),
    ({"limit": 1.0e23}, "limit: "),
    ({"limit": 2.5}, "limit: input should be a valid integer"),
    ({"seeds": [1, True]}, "seeds: input should be a number, not true or false"),
    ({"seeds": [False]}, "seeds: input should be a number, not true or false"),
    ({"seeds": [1, 1.0]}, "seeds: 1 given twice"),
    ({"sparsities": True}, "sparsities: input should be a number, not true or false"),
    ({"sparsities": [0.25, "2.5e-1"]}, "sparsities: 0.25 given twice"),
    ({"sparsities": {"a": 1}}, "sparsities: input should be a valid tuple"),
    ({"sparsities": [None]}, "sparsities: input should be a valid number"),
    ({"batch_tokens": True}, "batch_tokens: input should be a number, not true or false"),
    ({"training": None}, "training: must be a mapping of fields"),
    ({"training": [1]}, "training: must be a mapping of fields"),
    ({"training": {"learning_rate": True}}, "training.learning_rate: input should be a number"),
    ({"training": {"n_tokens": True}}, "training.n_tokens: input should be a number, not true"),
    ({"training": {"betas": [True, 0.9]}}, "training.betas: input should be a number, not true"),
    ({"training": {"warmup": float("nan")}}, "training.warmup: input should be"),
    ({"training": {"post_train": {"epochs": True}}}, "training.post_train.epochs: input should be"),
    ({"training": {"n_tokens": 10**30}}, "training.n_tokens: input should be"),
    ({"perplexity": {"n_tokens": False}}, "perplexity.n_tokens: input should be a number, not"),
    ({"lora": {"n_tokens": True}}, "lora.n_tokens: input should be a number, not true or false"),
    ({"prompting": {"num_fewshot": True}}, "prompting.num_fewshot: input should be a number, not"),
    ({"skip_missing": 7}, "skip_missing: input should be a valid boolean"),
    ({"title": "\ud800"}, "characters that no text has"),
    ({"models": "a\0b"}, "characters that no text has"),
    ({"lora": {"preset": "best"}}, "unknown LoRA preset 'best'"),
    ({"calibration": {"proportions": "rows"}}, "proportions"),
    ({"calibration": {"length": 1}}, "calibration.length: input should be greater than or equal"),
    ({"out": ["a"]}, "out: input is not a valid path"),
    ({"out": ""}, "out: give a folder that is the run's own"),
    ({"tasks": [False]}, "tasks: input should be a valid string"),
    # what applies to nothing
    ({"per_method": {"shortgtp": {}}}, "per_method: 'shortgtp' is no method of the run; did you"),
    ({"per_method": {"uidl": {}}}, "per_method: 'uidl' is no method of the run"),
    (
        {"methods": ["sleb+n_samples=2"], "per_method": {"sleb": {"sparsities": 0.4}}},
        "per_method: 'sleb' is no method of the run; did you mean sleb+n_samples=2?",
    ),
    ({"per_method": {"shortgpt": {"sparsity": 0.1}}}, "sparsity is not a field of a run; did you"),
    ({"per_method": {"shortgpt": 0.1}}, "per_method.shortgpt: must be a mapping of fields"),
    ({"per_method": {"shortgpt": {"sparsities": True}}}, "input should be a number, not true"),
    ({"per_method": {"shortgpt": {"sparsities": [0.3, 0.30]}}}, "sparsities: 0.3 given twice"),
    ({"per_model": {"modle": {}}}, "per_model: 'modle' is no model of the run; did you mean model"),
    ({"per_model": {"model": {"tasks": ["piqa"]}}}, "per_model: tasks cannot differ for model"),
    ({"per_model": {"model": {"training": {"n": 1}}}}, "training.n is not a field of a run"),
    ({"per_model": {"model": 5}}, "per_model.model: "),
    ({"per_model": {"model": {"batch_tokens": True}}}, "per_model, model: batch_tokens: input"),
    (
        {"per_model": {"model": {"per_method": {"shortgtp": {}}}}},
        "per_model, model: per_method: 'shortgtp' is no method of the run",
    ),
    # the layout of a table, before the run
    ({"report": 5}, "report must be a mapping"),
    ({"report": {"layout": 5}}, "report.layout must be a mapping"),
    ({"report": {"layout": {"kind": "foo"}}}, "A layout has the keys"),
    ({"report": {"layout": {"published": "v9_table9"}}}, "v9_table9"),
    (
        {"report": {"layout": {"published": "v1_table3_opt", "methods": 5}}},
        "report.layout: methods must be a mapping",
    ),
    # code that only a flag lets run
    ({"trust_remote_code": True}, "cannot set 'trust_remote_code'; it belongs on the command line"),
    ({"confirm_run_unsafe_code": True}, "cannot set 'confirm_run_unsafe_code'; it belongs on"),
    ({"methods": ["evilmod:X"]}, "names code to run: evilmod:X. Give --trust-remote-code"),
    ({"methods": ["dense", "evilmod:X+a=1"]}, "names code to run: evilmod:X+a=1. Give --trust"),
    ({"per_model": {"model": {"methods": ["evilmod:X"]}}}, "names code to run: evilmod:X. Give --"),
    ({"per_model": {"model": {"methods": "dense,evilmod:X"}}}, "names code to run: evilmod:X. G"),
    ({"include_path": "data"}, "names code to run: include_path data. Give --trust-remote-code"),
]


@pytest.mark.parametrize(("content", "message"), _SUITES)
def test_a_bad_suite_is_refused(
    content: str | bytes | dict[str, Any],
    message: str,
    bench: Callable[..., Shown],
    suite: Callable[..., str],
) -> None:
    path = suite(**content) if isinstance(content, dict) else suite(content)
    out = "" if isinstance(content, dict) and "out" in content else "--out OUT"
    bench(f"--suite {path} {out}").refuses(message)
