"""The stages by themselves: what is shared, and what an error of one variant does to the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from broken import Broken
from torch import Tensor

from streamline.api import recovery, training
from streamline.api.pruning import prune
from streamline.api.training import train
from streamline.api.variants import Dense, Failure, Target, Variant, unsupported_reason
from streamline.calibration import Calibration
from streamline.engine.decoder import Decoder
from streamline.errors import UnsupportedModelError
from streamline.method import Method
from streamline.progress import Silent
from streamline.registry import build_method
from streamline.sources.batches import TokenBatches
from streamline.testing.models import tiny_model, tiny_tokenizer
from streamline.training.lora_recipe import LoraSettings
from streamline.training.student import Recipe

RECIPE = Recipe(
    n_tokens=64, length=16, epochs=1, batch_tokens=32, validation_tokens=32, evaluations=0
)


@dataclass(frozen=True, kw_only=True)
class Unmeasured(Broken):
    """Fails while it calibrates."""

    name: ClassVar[str] = "unmeasured"

    def calibrate(self, decoder: Decoder, batches: Tensor) -> Calibration:
        raise ZeroDivisionError("no statistics")

    def calibration_key(self) -> str:
        return "its own"


@pytest.fixture(scope="module")
def dense() -> Dense:
    decoder = Decoder(tiny_model("llama", n_layers=6))
    return Dense(name="tiny", decoder=decoder, tokenizer=tiny_tokenizer(), fingerprint="tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n\n".join(f"line {i} of a text that says {i * i}" for i in range(300)))
    return str(file)


def tokens(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (4, 16), generator=generator)


def target(method: str | Method, sparsity: float = 0.3, seed: int = 0) -> Target:
    made = build_method(method) if isinstance(method, str) else method
    label = f"{made.name}-{sparsity}-{seed}"
    return Target(label=label, method=made, sparsity=sparsity, seed=seed)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tokens of every shared calibration pass."""
    from streamline import method

    found: list[Tensor] = []
    original = method.measure

    def counted(decoder: Decoder, batches: Tensor) -> Calibration:
        found.append(batches)
        return original(decoder, batches)

    monkeypatch.setattr(method, "measure", counted)
    return found


def test_one_pass_serves_all_methods_and_sparsities_of_a_seed(dense, measured, tmp_path):
    wanted = [
        target("shortgpt", 0.3),
        target("llm-streamline-none", 0.2),
        target("shortgpt", 0.3, seed=1),
        target("shortgpt", 0.0),
    ]
    found = prune(wanted, dense, tokens, tmp_path, Silent())
    assert [one.target for one in found] == wanted
    assert len(measured) == 2, "one for each seed"
    assert found[3].pruned.plan.is_dense and not found[3].costs
    assert all(one.costs["calibrate_s"] > 0 for one in found[:3])
    again = prune(wanted[:2], dense, tokens, tmp_path, Silent())
    assert len(measured) == 2, "kept on disk"
    assert [one.pruned.plan for one in again] == [one.pruned.plan for one in found[:2]]


def test_an_error_stays_with_its_variant(dense, tmp_path):
    wanted = [target(Broken()), target(Unmeasured()), target("shortgpt"), target("shortgpt", 0.999)]
    broken, unmeasured, good, refused = prune(wanted, dense, tokens, tmp_path, Silent())
    assert isinstance(broken, Failure) and str(broken.error) == "no scores"
    assert isinstance(unmeasured, Failure) and str(unmeasured.error) == "no statistics"
    assert isinstance(good, Variant)
    assert isinstance(refused, Failure) and isinstance(refused.error, UnsupportedModelError)
    reason = unsupported_reason(refused.target.method, dense.decoder, 0.999)
    assert reason == str(refused.error)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The labels of every call of the training."""
    found: list[list[str]] = []
    original: Callable[..., Any] = training.fit

    def counted(*args: Any, **options: Any) -> Any:
        found.append(options["labels"])
        return original(*args, **options)

    monkeypatch.setattr(training, "fit", counted)
    return found


def pruned(dense: Dense, folder: Path, *names: str) -> list[Variant]:
    found = prune([target(name) for name in names], dense, tokens, folder, Silent())
    assert all(isinstance(one, Variant) for one in found)
    return found


def test_replacements_share_one_teacher_and_come_back_with_their_costs(
    dense, text, fitted, tmp_path
):
    before = pruned(dense, tmp_path, "llm-streamline-ffn", "shortgpt", "llm-streamline-layer")
    after = train(
        before,
        dense,
        TokenBatches(dense.tokenizer),
        RECIPE,
        texts=text,
        folder=tmp_path,
        progress=Silent(),
    )
    assert len(fitted) == 1 and len(fitted[0]) == 2
    assert after[1] is before[1], "nothing to train"
    for variant in (after[0], after[2]):
        assert variant.costs["train_tokens"] == 64
        assert list(variant.training) == [variant.target.label]
    assert before[0].training == {}, "what went in stays as it was"


def test_each_method_has_its_own_recipe_where_none_is_given(dense, text, fitted, tmp_path):
    made = [
        build_method("llm-streamline-ffn").__class__(recipe=RECIPE),
        build_method("llm-streamline-swiglu").__class__(
            recipe=RECIPE.model_copy(update={"epochs": 2})
        ),
    ]
    before = prune([target(one) for one in made], dense, tokens, tmp_path, Silent())
    after = train(
        before,
        dense,
        TokenBatches(dense.tokenizer),
        None,
        texts=text,
        folder=tmp_path,
        progress=Silent(),
    )
    assert len(fitted) == 2
    assert [one.costs["train_tokens"] for one in after] == [64, 128]


def test_documents_are_counted_when_they_are_loaded(dense, text, tmp_path):
    batches = TokenBatches(dense.tokenizer)
    recipe = RECIPE.model_copy(update={"n_tokens": None, "n_documents": 3, "epochs": 2})
    options = {"texts": text, "folder": tmp_path, "progress": Silent()}
    (after,) = train(
        pruned(dense, tmp_path, "llm-streamline-ffn"), dense, batches, recipe, **options
    )
    distinct = batches.training(text, n_documents=3, validation_tokens=32, length=16, seed=0)[
        0
    ].numel()
    assert after.costs["train_tokens"] == 2 * distinct > 0
    tuned = recovery.fine_tune(after, dense, batches, LoraSettings(), recipe, **options)
    assert tuned.costs["train_tokens"] == pytest.approx(4 * distinct, rel=0.1)
    own = recovery.fine_tune(after, dense, batches, LoraSettings(n_documents=2), recipe, **options)
    assert 0 < own.costs["train_tokens"] - 2 * distinct < distinct


def test_a_training_that_fails_ends_those_that_shared_it(dense, text, tmp_path, monkeypatch):
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("diverged")

    before = pruned(dense, tmp_path, "llm-streamline-ffn", "shortgpt")
    monkeypatch.setattr(training, "fit", fail)
    ffn, short = train(
        before,
        dense,
        TokenBatches(dense.tokenizer),
        RECIPE,
        texts=text,
        folder=tmp_path,
        progress=Silent(),
    )
    assert isinstance(ffn, Failure) and str(ffn.error) == "diverged"
    assert ffn.costs["calibrate_s"] > 0
    assert short is before[1]
