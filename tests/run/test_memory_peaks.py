"""The peaks that are planned from shapes alone, held against those of the real stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, dense_path
from streamline.evaluation.efficiency.measure import Beside
from streamline.evaluation.efficiency.memory import peak_of
from streamline.evaluation.generation.engine import generate
from streamline.evaluation.generation.prompts import Prompt
from streamline.evaluation.scoring.score import Request, score
from streamline.method import Method
from streamline.methods.teacher_fits import together
from streamline.registry import build_method
from streamline.run.cell import Cell
from streamline.run.config import RunConfig
from streamline.run.planning import work
from streamline.run.planning.memory import plan_memory
from streamline.run.planning.plan import MemoryPlan, Row
from streamline.run.planning.sizes import Sizes
from streamline.testing.models import tiny_config, tiny_model, tiny_tokenizer
from streamline.training import lora
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.distillation.teacher import Distillation
from streamline.training.fit import fit
from streamline.training.student import Recipe

WITHIN = 0.15
WIDE = {"hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4}
RECIPE = Recipe(
    n_tokens=8_192, length=256, epochs=1, batch_tokens=8_192, validation_tokens=256, evaluations=0
)
SHAPES: dict[str, tuple[str, dict[str, Any], torch.dtype]] = {
    "llama": ("llama", {"n_layers": 6, **WIDE, "vocab_size": 1000}, torch.float32),
    "deep": ("llama", {"n_layers": 8, **WIDE, "vocab_size": 4000, "tied": True}, torch.bfloat16),
    "opt": (
        "opt",
        {"n_layers": 4, "hidden_size": 384, "word_embed_proj_dim": 384, "ffn_dim": 1536},
        torch.float32,
    ),
}
TRAINED = ("llm-streamline-ffn", "llm-streamline-swiglu", "llm-streamline-layer")
SUMMING = (
    "llm-streamline-ffn+init=linear+share=0", "streamline-v1-mlp+init=weighted+share=0",
    "linearpatch", "replaceme", "replaceme+objective=cosine",
)  # fmt: skip
LOOKING = ("shortgpt", "shortened-llama-taylor", "llm-pruner")


def real(family: str, shape: dict[str, Any], dtype: torch.dtype) -> Decoder:
    model: Any = tiny_model(family, **shape).to(dtype).eval()
    model.set_attn_implementation("sdpa")  # as models are loaded
    return Decoder(model)


def plan_of(
    decoder: Decoder,
    several: str,
    dtype: torch.dtype,
    sparsities: Sequence[float] = (0.25,),
    **changes: Any,
) -> MemoryPlan:
    """The plan for one method, or several, beside the dense model, by themselves."""
    values: dict[str, Any] = {
        "models": "m",
        "methods": several,
        "dtype": str(dtype).removeprefix("torch."),
        "calibration": {"n_samples": 8, "length": 256},
        "training": RECIPE.model_dump(),
        **changes,
    }
    config = RunConfig.model_validate(values)
    names = several.split(",")
    methods: dict[str, Method] = {name: build_method(name) for name in ("dense", *names)}
    dense = decoder.n_parameters()
    rows = [Row(Cell("m", "dense", 0.0, 0), 0, dense, dense)]
    for name, sparsity, recovery in product(names, sparsities, config.recovery):
        size = methods[name].size(decoder, sparsity)
        assert size is not None
        cell = Cell("m", name, sparsity, 0, recovery)
        rows.append(Row(cell, size.n_removed, dense, size.pruned))
    sizes = Sizes(config, methods, decoder, accelerator=False)
    return plan_memory(config, rows, sizes, memory=None)


def check(plan: MemoryPlan, stage: str, decoder: Decoder, done: Callable[[], object]) -> None:
    """Hold a stage's planned peak against what is held as it is done, weights and all."""
    (row,) = [row for row in plan.rows if row.stage == stage]
    weights = sum({p: p.numel() * p.element_size() for p in decoder.model.parameters()}.values())
    with peak_of(torch.device("cpu")) as peak:
        done()
    ratio = row.peak / (weights + peak.bytes)
    assert ratio == pytest.approx(1.0, abs=WITHIN), f"{stage}: {row} of {weights} + {peak.bytes}"


@pytest.fixture(
    params=["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("deep", "opt"))]
)
def case(request: pytest.FixtureRequest) -> tuple[Decoder, Decoder, torch.dtype]:
    """A model, its shape alone, and its dtype."""
    family, shape, dtype = SHAPES[request.param]
    return real(family, shape, dtype), Decoder.from_config(tiny_config(family, **shape)), dtype


def tokens(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 256), generator=torch.Generator().manual_seed(seed))


def test_calibration_and_gradients(case) -> None:
    decoder, shape, dtype = case
    for name in LOOKING:
        plan = plan_of(shape, name, dtype)
        method = build_method(name)
        if method.returns_model:
            (row,) = [row for row in plan.rows if row.stage == "prune"]
            plan.rows = [type(row)("calibrate", "", row.resident, row.added)]
        check(plan, "calibrate", decoder, lambda m=method: m.calibrate(decoder, tokens(8)))


def test_sums_over_states(case) -> None:
    """Those of all cells at once, and what is then made of them one by one."""
    decoder, shape, dtype = case
    calibration = build_method("shortgpt").calibrate(decoder, tokens(8))
    methods: dict[str, Any] = {name: build_method(name) for name in SUMMING}
    for name in SUMMING:
        (row,) = [row for row in plan_of(shape, name, dtype).rows if row.stage == "prune"]
        assert row.added > 8 * shape.hidden_size**2
    cells = [(name, sparsity) for name in SUMMING for sparsity in (0.25, 0.4)]

    def work() -> None:
        fits = [fit for n, s in cells for fit in methods[n].fits(decoder, calibration, s)]
        with together(decoder, fits, tokens(8)):
            for name, sparsity in cells:
                methods[name].prune(decoder, calibration, sparsity, tokens(8), 0)

    plan = plan_of(shape, ",".join(SUMMING), dtype, (0.25, 0.4))
    assert not plan.apart
    check(plan, "prune", decoder, work)


@pytest.mark.slow
def test_sliced_model(case) -> None:
    decoder, shape, dtype = case
    method: Any = build_method("slicegpt")
    plan = plan_of(shape, "slicegpt", dtype)
    calibration: Any = None
    made: list[Any] = []
    check(
        plan, "prune", decoder,
        lambda: made.append(method.prune(decoder, calibration, 0.25, tokens(8), 0)),
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", [TRAINED[0], *(pytest.param(name, marks=pytest.mark.slow) for name in TRAINED[1:])]
)
def test_training_of_replacements(case, name: str) -> None:
    decoder, shape, dtype = case
    method = build_method(name)
    calibration = build_method("shortgpt").calibrate(decoder, tokens(2))

    def train() -> None:
        pruned = method.prune(decoder, calibration, 0.25, tokens(2), 0)
        for student in pruned.students:
            student.apply(RECIPE)
        autocast = None if dtype == torch.float32 else torch.bfloat16
        fit(decoder, pruned.students, tokens(32), tokens(1, 1), autocast=autocast)

    check(plan_of(shape, name, dtype), "train", decoder, train)


@pytest.mark.slow
def test_distillation(case) -> None:
    decoder, shape, dtype = case
    plan = plan_of(shape, "shortgpt", dtype, recovery="kd", training=RECIPE.model_dump())
    model = assemble(dense_path(decoder))
    taught = Distillation(decoder, "", DistillationSettings())
    check(
        plan, "fine-tune", decoder,
        lambda: lora.fine_tune(
            model, tokens(32), validation=tokens(1, 1), token_budget=8_192, distillation=taught
        ),
    )  # fmt: skip


@pytest.mark.slow
def test_fine_tuning(case) -> None:
    decoder, shape, dtype = case
    plan = plan_of(shape, "shortgpt", dtype, recovery="lora", training=RECIPE.model_dump())
    check(
        plan, "fine-tune", decoder,
        lambda: lora.fine_tune(
            decoder.model, tokens(32), validation=tokens(1, 1), token_budget=8_192
        ),
    )  # fmt: skip


def test_scoring(case) -> None:
    decoder, shape, dtype = case
    draw = np.random.default_rng(0)
    requests = [
        Request(
            "t", n, 0, draw.integers(250, size=1).tolist(), draw.integers(250, size=255).tolist()
        )
        for n in range(16)
    ]
    check(
        plan_of(shape, "shortgpt", dtype), "evaluate", decoder,
        lambda: score([dense_path(decoder)], requests),
    )  # fmt: skip


def test_texts_that_models_write(case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many of the greatest length as are planned, which are shorter here."""
    decoder, shape, dtype = case
    monkeypatch.setattr(work, "_PROMPT", 96)
    monkeypatch.setattr(work, "_WRITTEN", 32)
    decoder.model.generation_config.eos_token_id = None
    ids = torch.randint(0, 250, (32, 96), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [Prompt(tuple(row), (), 32) for row in ids]
    nodes = dense_path(decoder).nodes
    paths = [dense_path(decoder), Path(decoder, (*nodes[:1], *nodes[2:]))]
    check(
        plan_of(shape, "shortgpt", dtype, tasks="streamline_gsm8k"), "generate", decoder,
        lambda: generate(paths, prompts, tiny_tokenizer(), written=lambda *_: None),
    )  # fmt: skip


@pytest.mark.parametrize("level", ["quick", pytest.param("full", marks=pytest.mark.slow)])
def test_measuring_speed(case, level: str) -> None:
    decoder, shape, dtype = case
    nodes = dense_path(decoder).nodes
    found: dict[str, Any] = {}

    def measure() -> None:
        path = Path(decoder, (*nodes[:1], *nodes[2:]))
        found.update(Beside(decoder, level).measure(path, seconds=None))

    check(plan_of(shape, "shortgpt", dtype, efficiency=level), "speed", decoder, measure)
    assert [speed["batch"] for speed in found["decode"]] == [1, 8] and "reason" not in found
