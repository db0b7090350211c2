"""Row: the peaks of memory that a run plans from shapes alone, held against those of its stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.speed.common import Outcome
from streamline.engine.decoder import Decoder
from streamline.engine.memory import free_memory
from streamline.engine.paths import dense_path
from streamline.evaluation.efficiency.memory import peak_of
from streamline.evaluation.scoring.score import score
from streamline.method import Method
from streamline.methods.replacement import make
from streamline.plan import Span
from streamline.registry import build_method
from streamline.run.cell import Cell
from streamline.run.config import RunConfig
from streamline.run.planning.memory import plan_memory
from streamline.run.planning.plan import MemoryPlan, Row
from streamline.run.planning.sizes import Sizes
from streamline.training.fit import fit
from streamline.training.student import Recipe, Student

__all__ = ["SPARSITY", "against_plan", "plan_of", "run"]

_METHODS = ("llm-streamline-ffn", "slicegpt")
SPARSITY = 0.25
_HELD_OUT = 2


def run(bench: Bench) -> Outcome:
    """Measure the row."""
    n, length = bench.sizes.train_tokens
    recipe = Recipe(
        n_tokens=n * length,
        length=length,
        epochs=1,
        batch_tokens=4 * length,
        validation_tokens=_HELD_OUT * length,
        evaluations=0,
    )
    plan = plan_of(bench, recipe)
    work = _work(bench, recipe, plan)
    return Outcome(
        name="memory",
        work=f"peaks of {len(work)} stages beside the weights, at sparsity {SPARSITY}",
        against="the plan that a run makes of the shapes alone",
        facts={stage: against_plan(bench, plan, stage, action) for stage, action in work.items()},
        notes=["A ratio is the plan over what was measured; SliceGPT's is in its own row."],
    )


def against_plan(
    bench: Bench, plan: MemoryPlan, stage: str, action: Callable[[], Any]
) -> dict[str, float | None]:
    """What a stage was planned to hold, and what it holds."""
    planned = next(row.added for row in plan.rows if row.stage == stage)
    free_memory()
    with peak_of(bench.device) as peak:
        action()
    return {
        "planned GiB": planned / 2**30,
        "measured GiB": peak.bytes / 2**30,
        "ratio": planned / peak.bytes if peak.bytes else None,
    }


def plan_of(bench: Bench, recipe: Recipe) -> MemoryPlan:
    """What a run of a trained method and SliceGPT beside the dense model would plan."""
    shape = Decoder.from_config(bench.decoder.config)
    n, length = bench.sizes.span_tokens
    config = RunConfig.model_validate(
        {
            "models": "m",
            "methods": ",".join(_METHODS),
            "dtype": str(bench.decoder.dtype).removeprefix("torch."),
            "calibration": {"n_samples": n, "length": length},
            "training": recipe.model_dump(),
            "efficiency": "off",
        }
    )
    dense = shape.n_parameters()
    methods: dict[str, Method] = {name: build_method(name) for name in ("dense", *_METHODS)}
    rows = [Row(Cell("m", "dense", 0.0, 0), 0, dense, dense)]
    for name in _METHODS:
        size = methods[name].size(shape, SPARSITY)
        assert size is not None
        rows.append(Row(Cell("m", name, SPARSITY, 0), size.n_removed, dense, size.pruned))
    sizes = Sizes(config, methods, shape, accelerator=bench.device.type != "cpu")
    return plan_memory(config, rows, sizes, memory=None)


def _work(bench: Bench, recipe: Recipe, plan: MemoryPlan) -> dict[str, Callable[[], Any]]:
    """The stages by the names that the plan has for them."""
    decoder = bench.decoder
    samples = bench.inputs.tokens(*bench.sizes.span_tokens)
    n, length = bench.sizes.train_tokens
    texts = bench.inputs.tokens(n + _HELD_OUT, length)
    asked = bench.inputs.questions(bench.sizes.questions).requests
    ffn = build_method(_METHODS[0])

    def train() -> None:
        size = ffn.size(decoder, SPARSITY)
        assert size is not None and size.n_removed is not None
        span = Span(1, 1 + size.n_removed)
        student = Student(span, make("ffn", decoder, span), recipe)
        autocast = None if bench.exact else torch.bfloat16
        fit(decoder, [student], texts[_HELD_OUT:], texts[:_HELD_OUT], autocast=autocast)

    return {
        "calibrate": lambda: ffn.calibrate(decoder, samples),
        "train": train,
        "evaluate": lambda: score([dense_path(decoder)], asked, batch_tokens=plan.batch_tokens),
    }
