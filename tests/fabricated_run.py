"""A fabricated run's folder: plausible records with samples, losses and a calibration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from streamline.kept import write_tensors
from streamline.results.averages import average, relative_accuracy
from streamline.results.readers.sample_rows import from_samples
from streamline.results.record import Record
from streamline.results.record_file import load, upsert
from streamline.results.samples import samples_path, write_samples
from streamline.results.stability import stability

TASKS = {
    "piqa": ("acc", 2, 0.68),
    "winogrande": ("acc", 2, 0.53),
    "hellaswag": ("acc_norm", 4, 0.43),
    "arc_easy": ("acc", 4, 0.60),
    "arc_challenge": ("acc_norm", 4, 0.31),
    "openbookqa": ("acc_norm", 4, 0.33),
}
# method -> how far accuracy falls per unit of sparsity, and what replaces the layers
METHODS = {
    "random-layers": (1.4, None),
    "shortgpt": (0.9, None),
    "llm-streamline-none": (0.85, None),
    "llm-streamline-ffn": (0.6, "ffn"),
    "llm-streamline-layer": (0.5, "layer"),
}
LAYERS, LAYER_SIZE, TOTAL = 30, 3_540_000, 134_515_008
VERSIONS = {"streamline-bench": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}


def sample_rows(rng, n, drop=0.0, dense=None):
    """Rows of the six tasks; with ``dense``, answers that flip from these."""
    rows = []
    for task, (metric, options, level) in TASKS.items():
        for doc in range(n):
            right = bool(rng.random() < level)
            if dense is not None:
                right = dense[task][doc]
                chance = drop if right else drop * level / 2
                right = right != bool(rng.random() < chance)
            gold = int(rng.integers(options)) if dense is None else doc % options
            for option in range(options):
                tokens = int(rng.integers(2, 9))
                rows.append(
                    {
                        "task": task,
                        "doc_id": doc,
                        "doc_hash": f"{task}-{doc}",
                        "option": option,
                        "loglikelihood": -tokens * float(rng.gamma(4.0, 0.7)),
                        "n_tokens": tokens,
                        "n_bytes": 4 * tokens,
                        "gold": gold,
                        "chosen": gold if right else (gold + 1) % options,
                        "correct": right,
                        "metric": metric,
                    }
                )
    return rows


def _cell(directory: Path, base: dict, rows: list[dict], dense, ppl: float) -> Record:
    import pandas as pd

    answers = from_samples(pd.DataFrame(rows))
    first = dense or answers
    results = {task: stability(first[task], answers[task]) for task in TASKS}
    tasks = {
        task: {
            "metric": result.metric,
            "value": result.accuracy_pruned,
            "stderr": float(
                np.sqrt(result.accuracy_pruned * (1 - result.accuracy_pruned) / result.n)
            ),
            "n": result.n,
            "version": 1,
            **result.to_fields(),
        }
        for task, result in results.items()
    }
    accuracies = {task: result.accuracy_pruned for task, result in results.items()}
    before = {task: result.accuracy_dense for task, result in results.items()}
    record = upsert(
        directory,
        {
            **base,
            "status": "ok",
            "tasks": tasks,
            "summary": {
                "accuracy": average(accuracies),
                "relative_accuracy": relative_accuracy(accuracies, before),
                "stability": average({task: result.value for task, result in results.items()}),
                "perplexity": {"heldout": ppl},
            },
        },
    )
    write_samples(samples_path(directory, record), rows)
    return record


def _around(median: float) -> dict[str, float]:
    return {"median": median, "lower": 0.97 * median, "upper": 1.04 * median}


def _speeds(dense: dict[int, float], ratio: float, length: int, tokens: int) -> list[dict]:
    return [
        {
            "batch": batch,
            "length": length,
            "tokens": tokens,
            "n": 7,
            "tokens_per_second": _around(ratio * speed),
            "dense_tokens_per_second": _around(speed),
            "ratio": _around(ratio),
        }
        for batch, speed in dense.items()
    ]


def made_efficiency(removed: float = 0.0, **changes: object) -> dict:
    """What a record says of a model that has lost a fraction of its parameters.

    Args:
        removed: The fraction; 0 for the dense model.
        changes: Keys that are to hold other values.
    """

    def counts(left: float) -> dict[str, int]:
        return {
            "parameters": round(left * TOTAL),
            "checkpoint_bytes": round(4 * left * TOTAL) + 40_000,
            "flops_per_token": round(2 * left * TOTAL),
            "kv_cache_bytes_per_token": 1536 * round(left * LAYERS),
        }

    left, faster = 1 - removed, 1 / (1 - 0.9 * removed)
    return {
        "level": "quick",
        "way": "cache",
        "device": "Made CPU x 2 threads",
        "dtype": "float32",
        "threads": 2,
        "context": 128,
        **counts(left),
        "dense": counts(1.0),
        "prefill": _speeds({1: 400.0, 8: 620.0}, 1.02 * faster if removed else 1.0, 128, 128),
        "decode": _speeds({1: 24.0, 8: 130.0}, faster, 128, 16),
        "time_to_first_token_seconds": _around(0.32 / faster),
        "dense_time_to_first_token_seconds": _around(0.32),
        "peak_memory_bytes": round(4.4 * left * TOTAL),
        "dense_peak_memory_bytes": round(4.4 * TOTAL),
        "peak_memory_way": "tensors",
        "seconds": 3.5,
        **changes,
    }


def make_run(directory: Path, n: int = 40, models=("smollm2-135m-instruct",)) -> Path:
    """Write a run's folder with failed, skipped, flagged and repeated cells."""
    for model in models:
        rng = np.random.default_rng(len(model))
        base = {"model": model, "seed": 0, "recovery": "none", "versions": VERSIONS}
        rows = sample_rows(rng, n)
        right = {
            task: [row["correct"] for row in rows if row["task"] == task and row["option"] == 0]
            for task in TASKS
        }
        dense_base = {
            **base,
            "method": "dense",
            "sparsity": 0.0,
            "method_repr": "Dense()",
            "plan": {"removed_layers": [], "kept_layers": list(range(LAYERS))},
            "parameters": {"dense": TOTAL, "pruned": TOTAL, "removed_fraction": 0.0},
            "cost": {"eval_s": 30.5, "peak_memory_bytes": 1_200_000_000},
            "efficiency": made_efficiency(),
        }
        _cell(directory, dense_base, rows, None, 29.0)
        import pandas as pd

        dense = from_samples(pd.DataFrame(rows))
        for sparsity in (0.10, 0.25):
            for method, (slope, replacement) in METHODS.items():
                removed = round(sparsity * TOTAL / LAYER_SIZE) + (replacement is not None)
                pruned = TOTAL - (removed - (replacement is not None)) * LAYER_SIZE
                cell = {
                    **base,
                    "method": method,
                    "sparsity": sparsity,
                    "method_repr": f"{method}()",
                    "plan": {
                        "removed_layers": list(range(11, 11 + removed)),
                        "kept_layers": [i for i in range(LAYERS) if not 11 <= i < 11 + removed],
                        "replacement": replacement,
                    },
                    "parameters": {
                        "dense": TOTAL,
                        "pruned": pruned,
                        "removed_fraction": 1 - pruned / TOTAL,
                    },
                    "cost": {
                        "calibrate_s": 8.25,
                        "calibrate_tokens": 16384,
                        "calibrate_flops": 2.0 * 16384 * TOTAL,
                        "calibrate_with": len(METHODS),
                        "train_s": 61.0 if replacement else None,
                        "train_steps": 100 if replacement else None,
                        "train_flops": 8.0e4 * TOTAL * sparsity if replacement else None,
                        "train_with": 2 if replacement else None,
                        "eval_s": 30.5 * (1 - sparsity),
                        "peak_memory_bytes": 1_100_000_000,
                        "train_tokens": 100_000 if replacement else None,
                    },
                    "efficiency": made_efficiency(
                        1 - pruned / TOTAL,
                        **(
                            {"measured_on": f"shortgpt@{sparsity:g}", "seconds": None}
                            if method == "llm-streamline-none"
                            else {}
                        ),
                    ),
                    "notes": {"flag": "one layer is 2.6 %"} if method == "random-layers" else {},
                }
                for seed in (0, 1) if method == "random-layers" else (0,):
                    cell["seed"] = seed
                    flipped = sample_rows(rng, n, slope * sparsity, right)
                    ppl = 29.0 * float(np.exp(slope * sparsity * 6))
                    _cell(directory, cell, flipped, dense, ppl)
        failed = {**base, "method": "slicegpt", "sparsity": 0.25, "status": "failed"}
        upsert(directory, {**failed, "reason": "RuntimeError: SVD did not converge"})
        skipped = {**base, "method": "laco", "sparsity": 0.25, "status": "skipped"}
        upsert(directory, {**skipped, "reason": "needs a model with gated MLPs | none here"})
    _write_losses(directory)
    _write_calibration(directory)
    return directory


def _write_losses(directory: Path) -> None:
    folder = directory / "losses"
    folder.mkdir(exist_ok=True)
    for number, record in enumerate(load(directory)):
        if record.plan is None or record.plan.replacement is None:
            continue
        number %= 2
        lines = [
            {
                "step": step,
                "tokens": step * 4096,
                "train_loss": None if step == 0 else (0.9 - 0.2 * number) * np.exp(-step / 40),
                "validation_loss": 0.15 + (0.9 - 0.2 * number) * np.exp(-step / 50),
                "lr": 3e-4,
                "seconds": 0.4 * step,
            }
            for step in range(0, 201, 20)
        ]
        name = samples_path("", record).stem
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")


def _write_calibration(directory: Path) -> None:
    folder = directory / "cache" / "calibration" / "0123abcd"
    folder.mkdir(parents=True, exist_ok=True)
    depth = np.arange(LAYERS + 1)
    distance = np.abs(depth[:, None] - depth[None, :])
    cosine = np.exp(-distance / (4 + 6 * np.sin(np.pi * depth / LAYERS))[:, None])
    cosine = (cosine + cosine.T) / 2
    facts = {"n_tokens": 16384, "n_samples": 32, "facts": {}}
    tensors = {"cosine": torch.from_numpy(cosine)}
    write_tensors(folder / "calibration.safetensors", tensors, {"facts": json.dumps(facts)})


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fabricated run of one model, shared by the tests: only to be read."""
    return make_run(tmp_path_factory.mktemp("run") / "out")


@pytest.fixture
def run_copy(run_folder: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be written to."""
    return Path(shutil.copytree(run_folder, tmp_path / "out"))
