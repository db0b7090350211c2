"""What the cells of a model take, against a counter of products and from one size to the next."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, Path, dense_path
from streamline.evaluation.scoring.score import Request, score
from streamline.method import Method
from streamline.plan import Span
from streamline.registry import build_method
from streamline.run.cell import Cell
from streamline.run.config import RunConfig
from streamline.run.planning.amounts import Amounts, Work, once
from streamline.run.planning.asked import Asked, asked_of
from streamline.run.planning.plan import MemoryPlan, Row
from streamline.testing.models import tiny_model
from streamline.training import lora
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.distillation.teacher import Distillation
from streamline.training.fit import fit
from streamline.training.parts.shares import run_again
from streamline.training.student import Recipe

NOTHING = Asked()
WIDE = {"hidden_size": 128, "intermediate_size": 256, "n_layers": 6}
RECIPE = Recipe(
    n_tokens=2_048, length=64, epochs=2, batch_tokens=512, validation_tokens=256, evaluations=1
)


@pytest.fixture
def decoder() -> Decoder:
    return Decoder(tiny_model("llama", **WIDE).eval())


def works(
    decoder: Decoder,
    spec: str,
    *,
    recovery: str = "none",
    asked: Asked = NOTHING,
    parts: bool = False,
    **changes: Any,
) -> dict[str, list[Work]]:
    """What the dense cell and one more take, by stage; that one's frozen layers in parts."""
    values: dict[str, Any] = {
        "models": "m", "methods": spec, "dtype": "float32", "device": "cpu", "efficiency": "off",
        "training": RECIPE.model_dump(), "calibration": {"n_samples": 4, "length": 64},
        "recovery": recovery, **changes,
    }  # fmt: skip
    config = RunConfig.model_validate(values)
    methods: dict[str, Method] = {name: build_method(name) for name in ("dense", spec)}
    dense = decoder.n_parameters()
    size = methods[spec].size(decoder, 0.3)
    assert size is not None
    rows = [
        Row(Cell("m", "dense", 0.0, 0), 0, dense, dense),
        Row(Cell("m", spec, 0.3, 0, recovery), size.n_removed, dense, size.pruned),
    ]
    memory = MemoryPlan("m", None, in_parts={rows[1].cell.label} if parts else set())
    amounts = Amounts(decoder, methods, config, asked, memory=memory)
    found: dict[str, list[Work]] = {}
    for own in once({row.cell.label: amounts.of(row) for row in rows}).values():
        for work in own:
            found.setdefault(work.stage, []).append(work)
    return found


def flops(found: list[Work]) -> float:
    return sum(work.flops for work in found)


def counted(work: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    ops = counter.get_flop_counts()["Global"]
    return float(sum(n for op, n in ops.items() if str(op) in ("aten.mm", "aten.addmm")))


def tokens(n: int, length: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (n, length), generator=torch.Generator().manual_seed(0))


def test_training_takes_what_the_counter_sees(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamline.engine.kernels.FastLinears.active", lambda _: nullcontext())
    planned = works(decoder, "llm-streamline-ffn")["train"]
    method: Any = build_method("llm-streamline-ffn")
    calibration = method.calibrate(decoder, tokens(4))
    students = method.prune(decoder, calibration, 0.3, tokens(4), 0).students
    students[0].apply(RECIPE)
    seen = counted(lambda: fit(decoder, students, tokens(32), tokens(4)))
    # The teacher is planned to its last layer, and runs to the last one that is replaced.
    depth = students[0].span.stop / decoder.n_layers
    teacher, student = (work.flops for work in planned)
    assert depth * teacher + student == pytest.approx(seen, rel=0.1)


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("recovery", ["lora", "kd"])
def test_a_recovery_takes_what_the_counter_sees(
    decoder: Decoder, recovery: str, parts: bool
) -> None:
    planned = flops(works(decoder, "shortgpt", recovery=recovery, parts=parts)["recover"])
    method: Any = build_method("shortgpt")
    pruned = method.prune(decoder, method.calibrate(decoder, tokens(4)), 0.3, tokens(4), 0)
    taught = Distillation(decoder, "", DistillationSettings()) if recovery == "kd" else None
    model = assemble(pruned.path(decoder))
    for layer in Decoder(model).layers if parts else ():
        run_again(layer, nullcontext)  # as one of which each process has a part
    seen = counted(
        lambda: lora.fine_tune(model, tokens(32), token_budget=4_096, distillation=taught)
    )
    assert planned == pytest.approx(seen, rel=0.15)


@pytest.mark.parametrize("parts", [False, True])
def test_training_through_layers_takes_what_the_counter_sees(
    decoder: Decoder, parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamline.engine.kernels.FastLinears.active", lambda _: nullcontext())
    recipe = RECIPE.model_copy(update={"objective": "lm"})
    own = recipe.model_dump()
    planned = flops(works(decoder, "llm-streamline-ffn", training=own, parts=parts)["train"])
    method: Any = build_method("llm-streamline-ffn")
    pruned = method.prune(decoder, method.calibrate(decoder, tokens(4)), 0.3, tokens(4), 0)
    (student,) = pruned.students
    student.apply(recipe)
    n_removed = student.span.stop - student.span.start
    student.span, nodes = Span(1, 1 + n_removed), dense_path(decoder).nodes
    path = Path(decoder, (nodes[0], Node(student.module, 1), *nodes[1 + n_removed :]))
    for layer in decoder.layers if parts else ():
        run_again(layer, nullcontext)
    seen = counted(lambda: fit(decoder, [student], tokens(32), tokens(4), paths=[path]))
    assert planned == pytest.approx(seen, rel=0.15)


def test_reading_takes_what_the_counter_sees(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamline.engine.kernels.FastLinears.active", lambda _: nullcontext())
    text = tokens(16).tolist()
    requests = [Request("t", i, 0, row[:32], row[32:]) for i, row in enumerate(text)]
    asked = Asked(read=16 * 64, scored=16 * 32)
    planned = works(decoder, "shortgpt", asked=asked)["evaluate"][0].flops
    seen = counted(lambda: score([dense_path(decoder)], requests))
    assert planned == pytest.approx(seen, rel=0.1)


def test_what_is_shared_is_there_once(decoder: Decoder) -> None:
    one = works(decoder, "llm-streamline-ffn", seeds=[0])
    assert [work.of for work in one["train"]] == ["the teacher", "llm-streamline-ffn 0.3"]
    assert len(one["calibrate"]) == 1


def test_what_a_method_decides_is_decided_once_whatever_recovers_it(decoder: Decoder) -> None:
    name = "evopress"  # it searches where it prunes
    values: dict[str, Any] = {"models": "m", "methods": name, "dtype": "float32"}
    values |= {"training": RECIPE.model_dump(), "device": "cpu"}
    values |= {"calibration": {"n_samples": 4, "length": 64}}
    config = RunConfig.model_validate(values)
    method, dense = build_method(name), decoder.n_parameters()
    cells = [
        Cell("m", name, sparsity, seed, kind)
        for sparsity in (0.2, 0.3)
        for seed in (0, 1)
        for kind in ("none", "lora", "kd")
    ]
    amounts = Amounts(decoder, {name: method}, config, NOTHING)
    rows = [Row(cell, 1, dense, dense) for cell in cells]
    found = once({row.cell.label: amounts.of(row) for row in rows}).values()
    pruned = [work for own in found for work in own if work.stage == "prune"]
    assert len(pruned) == 4 and all(work.flops > 0 for work in pruned)


@pytest.mark.parametrize(("apart", "trainings", "teachers"), [(False, 1, 1), (True, 3, 3)])
def test_networks_are_trained_once_whatever_recovers_them(
    decoder: Decoder, apart: bool, trainings: int, teachers: int
) -> None:
    values: dict[str, Any] = {"models": "m", "methods": "llm-streamline-ffn", "dtype": "float32"}
    values |= {"training": RECIPE.model_dump(), "device": "cpu", "one_by_one": apart}
    values |= {"calibration": {"n_samples": 4, "length": 64}}
    config = RunConfig.model_validate(values)
    method, dense = build_method("llm-streamline-ffn"), decoder.n_parameters()
    size = method.size(decoder, 0.3)
    assert size is not None
    cells = [Cell("m", "llm-streamline-ffn", 0.3, 0, kind) for kind in ("none", "lora", "kd")]
    amounts = Amounts(decoder, {"llm-streamline-ffn": method}, config, NOTHING)
    rows = [Row(cell, size.n_removed, dense, size.pruned) for cell in cells]
    found = once({row.cell.label: amounts.of(row) for row in rows}).values()
    train = [work.of for own in found for work in own if work.stage == "train"]
    assert train.count("the teacher") == teachers
    assert len(train) - teachers == trainings


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("calibrate", {"calibration": {"n_samples": 8, "length": 64}}),
        ("train", {"training": RECIPE.model_dump() | {"epochs": 3}}),
        ("train", {"training": RECIPE.model_dump() | {"post_train": {"n_tokens": 512}}}),
        ("recover", {"lora": {"n_tokens": 9_000}}),
    ],
)
def test_more_of_it_takes_longer(decoder: Decoder, stage: str, more: dict[str, Any]) -> None:
    less = works(decoder, "llm-streamline-ffn", recovery="lora")
    assert flops(works(decoder, "llm-streamline-ffn", recovery="lora", **more)[stage]) > flops(
        less[stage]
    )


def test_distillation_takes_longer_than_fine_tuning_by_the_teacher(decoder: Decoder) -> None:
    tuned, taught = (
        flops(works(decoder, "shortgpt", recovery=kind)["recover"]) for kind in ("lora", "kd")
    )
    teacher = 2 * sum(p.numel() for p in decoder.model.parameters() if p.dim() > 1)
    embedding = 2 * decoder.model.get_input_embeddings().weight.numel()
    assert taught - tuned == pytest.approx(4_096 * (teacher - embedding), rel=0.05)


def test_own_answers_are_written_once_and_wait_for_the_weights(decoder: Decoder) -> None:
    plain = works(decoder, "shortgpt", recovery="kd")["recover"]
    (writing, learning) = works(decoder, "shortgpt", recovery="kd", kd={"own_answers": 24})[
        "recover"
    ]
    assert [learning] == plain
    assert (writing.of, writing.shared) == ("own answers", ("own answers", "m", 0))
    head = decoder.model.get_output_embeddings().weight.numel()
    matrices = [p for layer in decoder.layers for p in layer.parameters() if p.dim() > 1]
    layers = sum(p.numel() for p in matrices)
    assert writing.flops == 2 * (2_048 * layers + 32 * 24 * head)  # 32 texts of 64 tokens
    assert writing.moved == 24 * 4 * decoder.n_parameters()  # one batch
    longest = works(decoder, "shortgpt", recovery="kd", kd={"own_answers": 48})["recover"][0]
    assert longest.moved == 2 * writing.moved


def test_texts_that_are_generated_wait_for_the_weights(decoder: Decoder) -> None:
    (dense, _) = works(decoder, "shortgpt", asked=Asked(read=100, prompts=128, written=10))[
        "evaluate"
    ]
    assert dense.moved == 20 * 4 * decoder.n_parameters()  # two batches of 64 texts, 10 steps each
    assert dense.launches == 20 * decoder.n_layers


def test_a_model_of_its_own_writes_its_texts_by_itself(decoder: Decoder) -> None:
    values: dict[str, Any] = {"models": "m", "methods": "slicegpt", "efficiency": "off"}
    values |= {"calibration": {"n_samples": 4, "length": 64}, "training": RECIPE.model_dump()}
    config = RunConfig.model_validate(values | {"dtype": "float32", "device": "cpu"})
    method, dense = build_method("slicegpt"), decoder.n_parameters()
    row = Row(Cell("m", "slicegpt", 0.3, 0), None, dense, dense)
    asked = Asked(prompts=128, written=10)
    found = Amounts(decoder, {"slicegpt": method}, config, asked, together=32).of(row)
    assert found[-1].launches == 20 * decoder.n_layers, "two batches of 64 texts, not of two"
    assert [work.divided for work in found] == [True, False, True], "each process slices"


@pytest.mark.parametrize("names", [("dense", "shortgpt"), ("shortgpt",)])
def test_streamed_layers_are_read_once_for_all_that_answer(
    decoder: Decoder, names: tuple[str, ...]
) -> None:
    values: dict[str, Any] = {"models": "m", "methods": "shortgpt", "stream": True}
    values |= {"calibration": {"n_samples": 4, "length": 64}, "training": RECIPE.model_dump()}
    config = RunConfig.model_validate(values | {"dtype": "float32", "device": "cpu"})
    n = decoder.n_parameters()
    rows = [Row(Cell("m", name, 0.3 * (name != "dense"), 0), 0, n, n) for name in names]
    amounts = Amounts(decoder, {name: build_method(name) for name in names}, config, Asked(read=9))
    found = once({row.cell.label: amounts.of(row) for row in rows}).values()
    fetched = [work.fetched for own in found for work in own if work.stage == "evaluate"]
    assert sum(fetched) == 4 * n


def test_what_is_asked_follows_from_the_settings() -> None:
    values = {"models": "m", "methods": "shortgpt", "perplexity": {"n_tokens": 1_000, "length": 64}}
    values |= {"dtype": "float32", "training": RECIPE.model_dump()}

    def read(**changes: Any) -> Asked:
        return asked_of(RunConfig.model_validate(values | changes))

    few, all_of_them = read(tasks="piqa", limit=10), read(tasks="piqa")
    assert few.read - 1_000 == pytest.approx((all_of_them.read - 1_000) * 10 / 1838, rel=0.01)
    assert read(tasks="piqa,hellaswag").read > all_of_them.read
    assert read(tasks="streamline_gsm8k", limit=7).prompts == 7
    assert few.prompts == 0
