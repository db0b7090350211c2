from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError, NotFiniteError, UnknownNameError
from streamline.method import Pruned
from streamline.methods.replacement import make
from streamline.plan import Plan, Span
from streamline.sources.instructions import prompt_text
from streamline.training.lora import PRESETS, LoraRecipe, fine_tune, matched_rank, target_modules
from streamline.training.lora import _adapters as adapters
from streamline.training.lora import _lora_layers as lora_layers
from streamline.training.lora_loop import Noise, plan_batches
from streamline.training.sequences import as_sequences

RECIPE = LoraRecipe(rank=4, batch=4, length=16, epochs=2, learning_rate=1e-2, dropout=0.1)
EXAMPLES = [
    {"instruction": "Add.", "input": "2 3", "output": "5"},
    {"instruction": "Say yes.", "output": "yes"},
    {"instruction": "Say no, but in a longer sentence.", "input": "", "output": "no no"},
]


def tokens(n: int, length: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, length), generator=torch.Generator().manual_seed(seed))


DATA = tokens(10)


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(DATA).logits


def replaced(model: PreTrainedModel, kind: str = "ffn") -> PreTrainedModel:
    decoder = Decoder(model)
    plan = Plan.replace(decoder.n_layers, Span(1, 3), kind)
    module = make(kind, decoder, Span(1, 3)).requires_grad_(False)
    return assemble(Pruned(plan, {1: module}).path(decoder))


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_opt", "tiny_qwen3"])
def test_loss_falls_and_only_the_layers_change(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = request.getfixturevalue(family)(n_layers=3, tied=True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    result = fine_tune(model, DATA, preset=RECIPE, validation=DATA, directory=tmp_path)
    assert result.model is model
    assert result.after < result.before
    after = dict(model.named_parameters())
    assert list(after) == list(before), "no adapter may be left behind"
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.weight" for name in target_modules(Decoder(model), "all")}
    assert not hasattr(model, "peft_config")
    lines = (tmp_path / "losses" / "lora.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.losses
    assert result.losses[-1]["lr"] == 0.0
    json.dumps(result.summary(), allow_nan=False)


@pytest.mark.parametrize("where", ["model.layers.1.mlp.up_proj.weight", None])
def test_a_loss_or_gradients_that_are_not_finite_end_the_fine_tuning(
    tiny_llama: Callable[..., nn.Module], where: str | None
) -> None:
    model = tiny_llama(n_layers=3)
    if where is None:  # only on the way back
        model.model.norm.register_full_backward_hook(lambda m, i, o: (i[0] * float("nan"),))
        words = "the gradient of every step"
    else:
        with torch.no_grad():
            model.get_parameter(where)[0, 0] = float("nan")
        words = "the validation loss at step 0"
    with pytest.raises(NotFiniteError, match=f"LoRA fine-tuning: {words} is not finite"):
        fine_tune(model, DATA, preset=RECIPE, validation=DATA)


@pytest.mark.parametrize("failing", [3, 4])
def test_steps_without_a_finite_gradient_are_told_and_most_of_them_end_the_fine_tuning(
    tiny_llama: Callable[..., nn.Module],
    failing: int,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, calls = tiny_llama(n_layers=3), iter(range(99))
    factor = {True: math.inf, False: 1.0}
    model.model.norm.register_full_backward_hook(
        lambda m, i, o: (i[0] * factor[next(calls) < failing],)
    )
    given: dict[str, Any] = {"preset": replace(RECIPE, dropout=0.0), "directory": tmp_path}
    if failing > 3:
        why = "LoRA fine-tuning: the gradient of 4 of 6 steps is not finite"
        with pytest.raises(NotFiniteError, match=why):
            fine_tune(model, DATA, validation=DATA, **given)
        assert not list(tmp_path.rglob("students/*"))
        return
    done = fine_tune(model, DATA, validation=DATA, **given).summary()
    assert (done["skipped_steps"], done["n_steps"]) == (3, 6)
    assert "lora: 3 of 6 steps were left out, their gradients not finite" in caplog.text


def test_merged_model_equals_the_model_with_adapters(tiny_llama: Callable[..., nn.Module]) -> None:
    from streamline.training import lora

    model, seen = tiny_llama(n_layers=3), []
    merge = lora._merge

    def spy(wrapped: nn.Module) -> None:
        assert lora_layers(wrapped)
        seen.append(logits(wrapped))
        merge(wrapped)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora, "_merge", spy)
        fine_tune(model, DATA, preset=RECIPE)
    torch.testing.assert_close(logits(model), seen[0], rtol=1e-4, atol=1e-4)
    assert (logits(tiny_llama(n_layers=3)) - seen[0]).abs().max() > 1e-2


def test_gpt2s_transposed_maps_are_merged_right(tmp_path: Path) -> None:
    from streamline.testing.models import tiny_model
    from streamline.training import lora

    model, seen, merge = tiny_model("gpt2", n_layers=2), [], lora._merge
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lora, "_merge", lambda m: (seen.append(logits(m)), merge(m)))
        result = fine_tune(model, DATA, preset=RECIPE)
    torch.testing.assert_close(logits(model), seen[0], rtol=1e-4, atol=1e-4)
    per_layer = (32 + 96) + (32 + 32) + (32 + 128) + (128 + 32)
    assert result.trained_parameters == 2 * RECIPE.rank * per_layer


@pytest.mark.parametrize("kind", ["ffn", "swiglu", "shared-ffn"])
def test_models_with_replacements_are_fine_tuned_without_touching_the_dense_one(
    tiny_llama: Callable[..., nn.Module], kind: str
) -> None:
    dense = tiny_llama(n_layers=5)
    before = {k: v.clone() for k, v in dense.state_dict().items()}
    flags = {k: p.requires_grad for k, p in dense.named_parameters()}
    model = replaced(dense, kind)
    names = [name for name in target_modules(Decoder(model), "all") if ".layers.1." in name]
    assert len(names) == (3 if kind == "swiglu" else 2)
    result = fine_tune(model, DATA, preset=RECIPE, validation=DATA)
    assert result.after < result.before
    for name, value in dense.state_dict().items():
        assert torch.equal(value, before[name])
    assert {k: p.requires_grad for k, p in dense.named_parameters()} == flags


def test_width_pruned_layers_are_fine_tuned(tiny_llama: Callable[..., nn.Module]) -> None:
    model = tiny_llama(n_layers=2)
    mlp = model.model.layers[0].mlp
    for name in ("gate_proj", "up_proj"):
        smaller = nn.Linear(32, 40, bias=False)
        smaller.weight.data = getattr(mlp, name).weight.data[:40].clone()
        setattr(mlp, name, smaller)
    mlp.down_proj = nn.Linear(40, 32, bias=False)
    result = fine_tune(model, DATA, preset=replace(RECIPE, targets="mlp"), validation=DATA)
    assert result.after < result.before
    assert result.trained_parameters == RECIPE.rank * 3 * ((32 + 40) + (32 + 64))


def test_targets_are_told_apart(tiny_llama: Callable[..., nn.Module]) -> None:
    decoder = Decoder(replaced(tiny_llama(n_layers=4)))
    everything = target_modules(decoder, "all")
    attention, mlp = target_modules(decoder, "attention"), target_modules(decoder, "mlp")
    assert set(attention) | set(mlp) == set(everything)
    assert not set(attention) & set(mlp)
    assert len(attention) == 2 * 4
    assert len(mlp) == 2 * 3 + 2


def test_matched_trains_the_asked_number(tiny_llama: Callable[..., nn.Module]) -> None:
    model = tiny_llama(n_layers=2)
    per_rank = 2 * ((32 + 32) * 2 + (32 + 16) * 2 + 3 * (32 + 64))
    asked = per_rank * 5 + 10
    result = fine_tune(model, DATA, preset="matched", trained_parameters=asked, token_budget=64)
    assert result.trained_parameters == per_rank * 5
    assert (result.recipe.rank, result.recipe.alpha) == (5, 10)
    assert matched_rank([nn.Linear(3, 4)], 1) == 1
    with pytest.raises(ConfigError, match="needs trained_parameters"):
        fine_tune(model, DATA, preset="matched")


def test_token_budget_is_met_whatever_the_preset() -> None:
    data = as_sequences(tokens(10), None, 16)
    for preset in PRESETS.values():
        for budget in (16, 100, 160, 1000):
            batches = plan_batches(data, preset, budget, seed=0)
            assert sum(len(b) for b in batches) * 16 == -(-budget // 16) * 16
    assert len(plan_batches(data, replace(RECIPE, max_steps=2), None, 0)) == 2
    assert [len(b) for b in plan_batches(data, RECIPE, None, 0)] == [4, 4, 2, 4, 4, 2]
    with pytest.raises(ConfigError, match="budget of recovery must be at least 1, got 0"):
        plan_batches(data, RECIPE, 0, 0)


class Stop(Exception):
    pass


@pytest.mark.parametrize("validated", [True, False])
def test_killed_and_resumed_equals_uninterrupted(
    tiny_llama: Callable[..., nn.Module], tmp_path: Path, validated: bool
) -> None:
    model = tiny_llama(n_layers=2)
    whole, killed, resumed, loaded = (copy.deepcopy(model) for _ in range(4))
    validation = tokens(4, seed=1) if validated else None
    expected = fine_tune(whole, DATA, preset=RECIPE, validation=validation)
    options = {
        "preset": RECIPE, "validation": validation, "directory": tmp_path, "save_seconds": 0.0,
    }  # fmt: skip

    def die(done: int, *_: object) -> None:
        if done > 200:
            raise Stop

    with pytest.raises(Stop):
        fine_tune(killed, DATA, progress=die, **options)
    assert not lora_layers(killed), "adapters are taken off even when it fails"
    steps: list[int] = []
    result = fine_tune(resumed, DATA, progress=lambda done, *_: steps.append(done), **options)
    assert steps[0] > 160
    assert torch.equal(logits(resumed), logits(whole))
    assert result.tokens == expected.tokens == 320
    steps.clear()
    fine_tune(loaded, DATA, progress=lambda done, *_: steps.append(done), **options)
    assert not steps
    assert torch.equal(logits(loaded), logits(whole))


def test_random_state_and_micro_batches_do_not_matter(tiny_llama: Callable[..., nn.Module]) -> None:
    model = tiny_llama(n_layers=2)
    recipe = replace(RECIPE, dropout=0.0)
    one, two = copy.deepcopy(model), copy.deepcopy(model)
    state = torch.get_rng_state()
    fine_tune(one, DATA, preset=recipe)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    fine_tune(two, DATA, preset=recipe, micro_batch=16)
    torch.testing.assert_close(logits(one), logits(two), rtol=1e-3, atol=1e-3)


def test_only_answers_count(
    tiny_llama: Callable[..., nn.Module], tokenizer: PreTrainedTokenizerFast
) -> None:
    data = as_sequences(EXAMPLES, tokenizer, length=300)
    ids, scored = data.part(torch.tensor([0, 1, 2]))
    texts = [tokenizer.decode(ids[i][scored[i]]) for i in range(3)]
    assert texts == ["5</s>", "yes</s>", "no no</s>"]
    assert tokenizer.decode(ids[0][: int(data.first[0])]) == prompt_text(EXAMPLES[0])
    assert "Input" not in prompt_text(EXAMPLES[2])


def test_padding_changes_nothing(
    tiny_llama: Callable[..., nn.Module], tokenizer: PreTrainedTokenizerFast
) -> None:
    recipe = replace(RECIPE, dropout=0.0, batch=3, epochs=1, length=300)
    padded, alone = tiny_llama(n_layers=2), tiny_llama(n_layers=2)
    a = fine_tune(padded, EXAMPLES, tokenizer=tokenizer, preset=recipe)
    b = fine_tune(alone, EXAMPLES, tokenizer=tokenizer, preset=recipe, micro_batch=1)
    assert a.losses[0]["train_loss"] == pytest.approx(b.losses[0]["train_loss"], rel=1e-5)
    model = tiny_llama(n_layers=2)
    nll, count = 0.0, 0
    for example in EXAMPLES:
        prompt = tokenizer(prompt_text(example)).input_ids
        ids = torch.tensor([prompt + tokenizer(example["output"]).input_ids + [258]])
        with torch.no_grad():
            logp = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        nll -= float(logp[len(prompt) - 1 :].sum())
        count += ids.shape[1] - len(prompt)
    assert a.losses[0]["train_loss"] == pytest.approx(nll / count, rel=1e-4)
    torch.testing.assert_close(logits(padded), logits(alone), rtol=1e-3, atol=1e-3)


def test_bfloat16_model_keeps_its_dtype(tiny_llama: Callable[..., nn.Module]) -> None:
    model = tiny_llama(n_layers=2).to(torch.bfloat16)
    with adapters(model, target_modules(Decoder(model), "all"), RECIPE, 0, Noise(0)) as (
        found,
        _,
    ):
        assert {p.dtype for p in found.values()} == {torch.float32}
    result = fine_tune(model, DATA, preset=RECIPE, validation=DATA)
    assert result.after < result.before
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_refusals(tiny_llama: Callable[..., nn.Module], tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_llama(n_layers=2)
    with pytest.raises(UnknownNameError, match="unknown LoRA preset 'alpaca'; choose default, llm"):
        fine_tune(model, DATA, preset="alpaca")
    with pytest.raises(ConfigError, match="need tokenizer=, got None"):
        fine_tune(model, EXAMPLES)
    with pytest.raises(ConfigError, match=r"needs 'instruction' and 'output'.*\['text'\]"):
        fine_tune(model, [{"text": "a"}], tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="none of 3 examples has an answer within 4 tokens"):
        fine_tune(model, EXAMPLES, tokenizer=tokenizer, preset=replace(RECIPE, length=4))
    with pytest.raises(ConfigError, match=r"at least 2 tokens each, got torch.int64 \(3, 1\)"):
        fine_tune(model, DATA[:3, :1])
    with pytest.raises(ConfigError, match="'all', 'attention' or 'mlp', got 'head'"):
        LoraRecipe(targets="head")
    with pytest.raises(ConfigError, match="LoRA rank must be at least 1, got 0"):
        LoraRecipe(rank=0)
    with pytest.raises(ConfigError, match=r"dropout must be in \[0, 1\), got 1"):
        LoraRecipe(dropout=1)
