"""What each of several processes trains in the tests that they work together."""

from __future__ import annotations

import copy
from contextlib import ExitStack, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM

from streamline.distributed.exchange import coming
from streamline.distributed.team import leads, team
from streamline.distributed.work import agreed
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, dense_path
from streamline.engine.paths import Path as LayerPath
from streamline.method import Pruned
from streamline.methods.loss import path_losses
from streamline.methods.replacement import make
from streamline.plan import Plan, Span
from streamline.streaming.decoder import StreamedDecoder
from streamline.streaming.opening import open_streamed
from streamline.testing.models import tiny_model, tiny_tokenizer
from streamline.training.activations import ActivationCache
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.distillation.teacher import Distillation
from streamline.training.fit import fit
from streamline.training.lora import FineTuned, LoraRecipe, fine_tune
from streamline.training.parts import shares
from streamline.training.parts.frozen import lent
from streamline.training.parts.shares import Shares
from streamline.training.student import Recipe, Student

TOKENS = torch.randint(0, 256, (7, 16), generator=torch.Generator().manual_seed(0))
HELD_OUT = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(1))
RECIPE = {"n_tokens": 112, "batch_tokens": 64, "validation_tokens": 32, "evaluations": 2}
ANSWERS = [{"instruction": f"say {i}", "output": "word " * (1 + i % 4)} for i in range(7)]


NAMES = (
    "mse", "lm", "epochs", "resumed", "lora", "kd-lora", "kd-replacement", "kd-all",
    "kd-parts-resumed", "kd-parts-taken-up",
    "kd-parts-opt", "kd-parts-gpt2",
    "frozen-lora", "frozen-taken-up", "frozen-kd-replacement", "frozen-mse", "frozen-lm",
    "lent-lm", "lent-lora", "lent-kd-lora",
)  # fmt: skip


def trainings(folder: Path) -> dict[str, list[Any]]:
    """Losses and weights of each training, whose last batches are smaller than the others."""
    return {
        "mse": trained("mse"),
        "lm": trained("lm"),
        "epochs": trained("mse", epochs=2, cache=ActivationCache(folder / "states", 2**30)),
        "resumed": trained("mse", directory=folder / "resumed"),
        "lora": tuned(folder),
        "kd-lora": distilled("lora", folder / "kd-lora"),
        "kd-replacement": distilled("replacement", folder / "kd-replacement", top_k=5),
        "kd-all": distilled("all", folder / "kd-all", answers=True, temperature=2.0),
        "kd-parts-resumed": distilled("all", folder / "kd-stopped", divided=True),
        "kd-parts-taken-up": taken_up(folder / "kd-left"),
        "kd-parts-opt": distilled("all", folder / "kd-opt", divided=True, family="opt"),
        "kd-parts-gpt2": distilled("all", folder / "kd-gpt2", divided=True, family="gpt2"),
        "frozen-lora": recovered(folder / "frozen-stopped"),
        "frozen-taken-up": taken_up_whole(folder / "frozen-left"),
        "frozen-kd-replacement": recovered(folder / "frozen-own", trainees="replacement"),
        "lent-lm": trained("lm", divided=True),
        "lent-lora": tuned(folder / "lent", divided=True),
        "lent-kd-lora": distilled("lora", folder / "lent-kd", divided=True),
        "frozen-mse": replaced("mse", folder / "frozen-mse"),
        "frozen-lm": replaced("lm", folder / "frozen-lm"),
    }


class Stopped(Exception):
    """A training that is broken off."""


def trained(
    objective: str,
    stop: bool = False,
    epochs: int = 1,
    decoder: Decoder | None = None,
    kinds: tuple[str, ...] = ("ffn", "layer"),
    **more: Any,
) -> list[Any]:
    """Losses and weights of a training whose last batch has fewer sequences than processes."""
    decoder = decoder or Decoder(tiny_model("llama", n_layers=3))
    recipe = Recipe(objective=objective, learning_rate=1e-3, epochs=epochs, **RECIPE)
    students = [
        Student(Span(1, 2), make(kind, decoder, Span(1, 2), seed=3), recipe) for kind in kinds
    ]

    def progress(done: int, total: int, text: str) -> None:
        if stop and done > 64:
            raise Stopped

    found = fit(
        decoder, students, TOKENS, HELD_OUT, progress=progress, save_seconds=0.0, micro_batch=32,
        **more,
    )  # fmt: skip
    names = ("train_loss", "validation_loss")
    losses = [row[name] for one in found for row in one.rows for name in names if row[name]]
    losses += [one.dropping for one in found if one.dropping is not None]
    weights = [p.flatten()[::7] for one in students for p in one.module.parameters()]
    return [losses, torch.cat(weights).tolist()]


def broken_off(folder: Path) -> None:
    """One process's trainings after their first steps."""
    with pytest.raises(Stopped):
        trained("mse", stop=True, directory=folder / "resumed")
    with pytest.raises(Stopped):
        distilled("all", folder / "kd-stopped", stop=True)
    with pytest.raises(Stopped):
        recovered(folder / "frozen-stopped", stop=True)


def tuned(folder: Path, **more: Any) -> list[Any]:
    """Losses and weights of a fine-tuning with dropout on answers of several lengths."""
    model = copy.deepcopy(tiny_model("llama", n_layers=2))
    recipe = LoraRecipe(rank=2, alpha=4, dropout=0.3, batch=4, epochs=2, learning_rate=1e-2)
    found = fine_tune(
        model, ANSWERS, tokenizer=tiny_tokenizer(), preset=recipe, validation=ANSWERS[:2],
        directory=folder / "lora", micro_batch=64, **more,
    )  # fmt: skip
    return outcome(found, model)


def distilled(
    trainees: str,
    folder: Path,
    *,
    answers: bool = False,
    divided: bool = False,
    family: str = "llama",
    stop: bool = False,
    **settings: Any,
) -> list[Any]:
    """Losses and weights of a pruned model that learns from its dense one.

    Batches are of five sequences and of two, of which the last of three processes has none.
    """
    dense = Decoder(tiny_model(family, n_layers=4))
    module = make("ffn", dense, Span(1, 3), seed=3).requires_grad_(False)
    plan = Plan.replace(dense.n_layers, Span(1, 3), "ffn")
    model = assemble(Pruned(plan, {1: module}).path(dense))
    data: Tensor | list[Any] = ANSWERS if answers else TOKENS
    about = {"trainees": trainees, **settings}

    def progress(done: int, total: int, text: str) -> None:
        if stop and done > 100:
            raise Stopped

    found = fine_tune(
        model, data, tokenizer=tiny_tokenizer(), validation=data[:2], directory=folder,
        preset=LoraRecipe(
            rank=2, dropout=0.2, batch=5, length=256 if answers else 16, epochs=2,
            learning_rate=1e-3,
        ),
        micro_batch=256 if answers else 32,
        distillation=Distillation(dense, "dense", DistillationSettings.model_validate(about)),
        divided=divided, progress=progress, save_seconds=0.0 if leads() else 30.0,
    )  # fmt: skip
    return outcome(found, model)


def taken_up(folder: Path) -> list[Any]:
    """What a training in parts left after some steps, taken up by one that is not."""
    with pytest.raises(Stopped):
        distilled("all", folder, divided=True, stop=True)
    return distilled("all", folder)


def replaced(objective: str, folder: Path) -> list[Any]:
    """Losses and weights of networks for a model of which several processes have parts."""
    with ExitStack() as held:
        dense = opened(folder.parent.parent / "model", held, whole=team().size == 1)
        if isinstance(dense, StreamedDecoder):
            held.enter_context(dense.held())
        kinds = ("ffn", "swiglu", "layer")
        return trained(objective, decoder=dense, kinds=kinds, directory=folder)


def opened(place: Path, held: ExitStack, *, whole: bool) -> Decoder:
    """A model in memory, or one whose layers come one at a time."""
    if whole:
        return Decoder(AutoModelForCausalLM.from_pretrained(place))
    decoder = open_streamed(place, AutoConfig.from_pretrained(place))
    held.enter_context(decoder.source)
    return decoder


def recovered(
    folder: Path,
    *,
    trainees: str | None = None,
    stop: bool = False,
    whole: bool = False,
) -> list[Any]:
    """Losses of a recovery of a frozen model, and those of what comes of it on some text.

    One process has the model in memory, and several a part of each layer; batches are as for
    :func:`distilled`.
    """
    place = folder.parent.parent / "model"
    whole = whole or team().size == 1
    with ExitStack() as held:
        dense = opened(place, held, whole=whole)
        nodes = [Node(layer, index) for index, layer in enumerate(dense.layers)]
        inserted = make("ffn", dense, Span(1, 2), seed=3).requires_grad_(False)
        nodes[1] = Node(inserted, 1)
        kd = trainees and DistillationSettings.model_validate({"trainees": trainees, "top_k": 9})

        def progress(done: int, total: int, text: str) -> None:
            if stop and done > 100:
                raise Stopped

        with dense.held() if isinstance(dense, StreamedDecoder) else nullcontext():
            found = fine_tune(
                assemble(LayerPath(dense, tuple(nodes[:-1]))), ANSWERS, tokenizer=tiny_tokenizer(),
                validation=ANSWERS[:2], directory=folder, micro_batch=64,
                preset=LoraRecipe(rank=2, dropout=0.2, batch=5, epochs=2, learning_rate=1e-2),
                distillation=Distillation(dense, "dense", kd) if kd else None,
                progress=progress, save_seconds=0.0 if leads() else 30.0, dense=(dense, "dense"),
            )  # fmt: skip
        losses = outcome(found, nn.Module())[0]
        layers = Decoder(found.model).layers
        if whole:
            return [losses, path_losses([dense_path(Decoder(found.model))], TOKENS)]
        path = LayerPath(dense, tuple(Node(layer, i) for i, layer in enumerate(layers)))
        return [losses, path_losses([path], TOKENS)]


def taken_up_whole(folder: Path) -> list[Any]:
    """What a recovery in parts left after some steps, taken up with whole weights."""
    with pytest.raises(Stopped):
        recovered(folder, stop=True)
    return recovered(folder, whole=True)


def in_parts() -> list[int]:
    """Numbers in all weights of some layers, and in what this process holds of them."""
    found = Shares(Decoder(tiny_model("llama", n_layers=3)))
    held = [sum(p.numel() for p in layer.parameters()) for layer in found.layers]
    local = sum(p.numel() for p in found.parameters.values())
    assert sum(held) == sum(found.sizes.values())
    return [sum(held), local]


def lending() -> dict[str, Any]:
    """What is where while layers are lent, and what comes back, also when one process fails."""
    decoder = Decoder(tiny_model("llama", n_layers=3))
    decoder.model.requires_grad_(False)
    own = [p for layer in decoder.layers for p in layer.parameters()]
    before = [p.clone() for p in own]
    entry = decoder.enter(TOKENS)

    def work(made: list[list[nn.Module]]) -> list[int]:
        parts = [p for layer in made[0] for p in layer.parameters()]
        local = [cast("DTensor", p).to_local().numel() for p in parts]
        return [sum(p.numel() for p in own), sum(local), sum(p.numel() for p in before)]

    def broken(made: list[list[nn.Module]]) -> None:
        if team().rank == team().size - 1:
            raise ValueError("broken")
        with coming(), torch.no_grad():
            decoder.run(made[0][0], entry.hidden, entry, 0)

    def same() -> bool:
        return all(torch.equal(a, b) for a, b in zip(own, before, strict=True))

    held, back = lent([decoder.layers], decoder.device, work), same()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shares, "_PATIENCE", timedelta(seconds=2))
        with pytest.raises(Exception) as info:
            agreed(lambda: lent([decoder.layers], decoder.device, broken))
    return {"held": held, "said": str(info.value), "same": [back, same()]}


def outcome(found: FineTuned, model: nn.Module) -> list[Any]:
    """Losses of a fine-tuning and some of the weights that it left."""
    names = ("train_loss", "validation_loss")
    losses = [row[name] for row in found.losses for name in names if row[name] is not None]
    weights = [p.detach().flatten()[::97] for p in model.parameters()]
    return [losses, torch.cat(weights).tolist() if weights else []]
