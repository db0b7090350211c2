"""The stage of distillation: who learns, what stays, what it is resumed from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.errors import NotFiniteError, UnsupportedModelError
from streamline.method import Pruned
from streamline.methods.replacement import make
from streamline.plan import Plan, Span
from streamline.training import lora_loop
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.distillation.teacher import Distillation, Teacher
from streamline.training.lora import FineTuned, LoraRecipe, fine_tune
from streamline.training.sequences import as_sequences
from streamline.training.state import TrainingState

RECIPE = LoraRecipe(rank=4, batch=4, length=16, epochs=2, learning_rate=1e-2, dropout=0.0)
EXAMPLES = [{"instruction": "Add.", "input": "2 3", "output": "5"}] * 3
DATA = torch.randint(0, 256, (10, 16), generator=torch.Generator().manual_seed(0))


def pruned(dense: PreTrainedModel, kind: str | None = "ffn") -> PreTrainedModel:
    decoder = Decoder(dense)
    if kind is None:
        plan = Plan.drop(decoder.n_layers, [2, 3])
        return assemble(Pruned(plan).path(decoder))
    module = make(kind, decoder, Span(2, 4)).requires_grad_(False).to(decoder.dtype)
    return assemble(
        Pruned(Plan.replace(decoder.n_layers, Span(2, 4), kind), {2: module}).path(decoder)
    )


def distil(
    dense: PreTrainedModel, student: PreTrainedModel, recipe: LoraRecipe = RECIPE, *,
    directory: Path | None = None, save_seconds: float = 30.0, validation: Tensor | None = DATA,
    **settings: object,
) -> FineTuned:  # fmt: skip
    taught = Distillation(Decoder(dense), "dense", DistillationSettings.model_validate(settings))
    return fine_tune(
        student, DATA, preset=recipe, validation=validation, directory=directory,
        save_seconds=save_seconds, distillation=taught,
    )  # fmt: skip


@pytest.mark.parametrize("trainees", ["lora", "all"])
@pytest.mark.parametrize("top_k", [None, 5])
def test_a_dense_model_that_teaches_itself_changes_nothing(
    tiny_llama: Callable[..., PreTrainedModel], trainees: str, top_k: int | None
) -> None:
    dense = tiny_llama(n_layers=3, tied=True)
    student = assemble(dense_path(Decoder(dense)))
    result = distil(dense, student, trainees=trainees, top_k=top_k, temperature=2.0)
    assert result.before == result.after == 0
    assert [row["train_loss"] for row in result.losses[1:]] == [0] * result.n_steps
    after = student.state_dict()
    for name, value in dense.state_dict().items():
        assert torch.equal(value, after[name]), name


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_opt"])
@pytest.mark.parametrize("trainees", ["lora", "replacement", "all"])
def test_each_trainee_comes_nearer_to_the_dense_model_and_leaves_it_alone(
    family: str, trainees: str, request: pytest.FixtureRequest
) -> None:
    dense = request.getfixturevalue(family)(n_layers=6, tied=True)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    flags = {name: p.requires_grad for name, p in dense.named_parameters()}
    student = pruned(dense)
    start = {name: value.clone() for name, value in student.state_dict().items()}
    result = distil(dense, student, trainees=trainees)
    assert result.after is not None and result.before is not None
    assert result.after < result.before
    for name, value in dense.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert {name: p.requires_grad for name, p in dense.named_parameters()} == flags
    changed = {n for n, value in student.state_dict().items() if not torch.equal(value, start[n])}
    inserted = {name for name in start if ".layers.2." in name}
    if trainees == "replacement":
        assert changed == inserted
        assert result.trained_parameters == sum(start[name].numel() for name in inserted)
    else:
        assert changed > {
            name for name in inserted if name.endswith("weight") and "norm" not in name
        }
    if trainees == "all":
        assert changed == set(start)
        assert result.trained_parameters == sum(p.numel() for p in student.parameters())
    assert result.shared_layers == (2 if trainees == "replacement" else 0)


def test_shared_layers_run_once_for_teacher_and_student(
    tiny_llama: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny_llama(n_layers=6)
    student, runs = pruned(dense), list[nn.Module]()
    original = Decoder.run

    def counted(self: Decoder, module: nn.Module, *args: Any) -> Tensor:
        runs.append(module)
        return original(self, module, *args)

    monkeypatch.setattr(Decoder, "run", counted)
    recipe = replace(RECIPE, max_steps=3)
    assert distil(dense, student, recipe, validation=None, trainees="replacement").n_steps == 3
    assert [runs.count(layer) for layer in dense.model.layers] == [3] * 6
    assert [runs.count(layer) for layer in student.model.layers] == [0, 0, 3, 3, 3]


def test_the_loss_is_that_of_whole_logits_and_of_the_answers_alone(
    tiny_llama: Callable[..., PreTrainedModel], tokenizer: object
) -> None:
    dense = tiny_llama(n_layers=6)
    student = pruned(dense, None)
    sequences = as_sequences(EXAMPLES, tokenizer, 256)
    ids, scored = sequences.part(torch.arange(len(EXAMPLES)))
    settings = DistillationSettings(temperature=2.0, text=0.25)
    taught = Distillation(Decoder(dense), "", settings)
    with torch.no_grad():
        found = Teacher.of(taught, Decoder(student)).divergence(ids, scored)
        wanted = (dense(ids).logits[:, :-1] / 2).log_softmax(-1)
        logits = student(ids).logits[:, :-1]
        made = (logits / 2).log_softmax(-1)
    each = 0.75 * 4 * (wanted.exp() * (wanted - made)).sum(-1)
    each -= 0.25 * logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    assert float(found) == pytest.approx(float(each[scored[:, 1:]].sum()), rel=1e-5)
    assert 0 < int(scored.sum()) < scored.numel() / 2


class Stop(Exception):
    pass


@pytest.mark.parametrize("trainees", ["lora", "replacement", "all"])
def test_killed_and_resumed_equals_uninterrupted(
    tiny_llama: Callable[..., PreTrainedModel], tmp_path: Path, trainees: str
) -> None:
    dense = tiny_llama(n_layers=6)
    torch.manual_seed(0)
    whole = pruned(dense)
    killed, resumed, loaded = (copy.deepcopy(whole) for _ in range(3))
    # Copies do not share the dense model's tensors; what is trained must not depend on that.
    own = trainees != "replacement"
    if not own:
        killed, resumed, loaded = (_again(dense, whole) for _ in range(3))
    expected = distil(dense, whole, trainees=trainees)

    from streamline.training.state import TrainingState

    update = TrainingState.update

    def dying(self: TrainingState, *args: object) -> None:
        if self.step == 3:
            raise Stop
        update(self, *args)  # type: ignore[arg-type]

    options = {"directory": tmp_path, "save_seconds": 0.0, "trainees": trainees}
    start = {name: value.clone() for name, value in killed.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingState, "update", dying)
        with pytest.raises(Stop):
            distil(dense, killed, **options)
    assert all(torch.equal(value, start[name]) for name, value in killed.state_dict().items())
    found = distil(dense, resumed, **options)
    assert (tmp_path / "students" / "kd.safetensors").is_file()
    assert [row | {"seconds": 0} for row in found.losses] == [
        row | {"seconds": 0} for row in expected.losses
    ]
    distil(dense, loaded, **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
        assert torch.equal(value, loaded.state_dict()[name]), name
    changed = distil(dense, _again(dense, whole), temperature=3.0, **options)
    assert changed.losses[1]["train_loss"] != found.losses[1]["train_loss"]


def _again(dense: PreTrainedModel, student: PreTrainedModel) -> PreTrainedModel:
    """The same student, made of the dense model's tensors once more."""
    made = pruned(dense)
    made.model.layers[2].load_state_dict(student.model.layers[2].state_dict())
    return made


def test_half_precision_is_trained_in_float32(tiny_llama: Callable[..., PreTrainedModel]) -> None:
    dense = tiny_llama(n_layers=6).to(torch.bfloat16)
    for trainees in ("lora", "replacement", "all"):
        student = pruned(dense)
        result = distil(dense, student, trainees=trainees)
        assert result.after is not None and result.before is not None
        assert result.after < result.before
        assert {p.dtype for p in student.parameters()} == {torch.bfloat16}


def test_what_cannot_be_taught_is_refused(tiny_llama: Callable[..., nn.Module]) -> None:
    dense = tiny_llama(n_layers=6)
    with pytest.raises(UnsupportedModelError, match="no weights of its own to train"):
        distil(dense, pruned(dense, None), trainees="replacement")
    student = pruned(dense)
    with torch.no_grad():
        next(student.model.layers[2].parameters()).fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="distillation: the validation loss at step 0 is not"):
        distil(dense, student)


def test_a_model_of_other_tokens_is_not_taught(tiny_llama: Callable[..., PreTrainedModel]) -> None:
    dense, student = tiny_llama(n_layers=2), tiny_llama(n_layers=2)
    student.resize_token_embeddings(dense.config.vocab_size - 8)
    with pytest.raises(UnsupportedModelError, match="predictions of the same tokens"):
        distil(dense, student, top_k=5)
    assert not [name for name, _ in student.named_modules() if "lora" in name]


def test_most_of_the_time_goes_into_training_where_a_state_takes_long_to_keep(
    tiny_llama: Callable[..., PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, kept = [0.0], list[int]()

    def save(state: TrainingState) -> None:
        kept.append(state.step)
        now[0] += took

    update = TrainingState.update

    def step(state: TrainingState, *given: Any) -> None:
        update(state, *given)
        now[0] += 10.0

    monkeypatch.setattr(TrainingState, "save", save)
    monkeypatch.setattr(TrainingState, "update", step)
    monkeypatch.setattr(lora_loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    dense = tiny_llama(n_layers=4)
    for took, wanted in {1.0: [1, 2, 3, 4, 5], 2.5: [1, 4]}.items():
        kept.clear()
        distil(dense, pruned(dense), directory=tmp_path / str(took), save_seconds=5.0)
        assert kept == wanted
