"""How a pruned model learns from its dense one's next-token distributions; imports no torch.

Example::

    DistillationSettings(trainees="replacement", temperature=2.0, top_k=100)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from streamline.training.lora_recipe import LoraRecipe
from streamline.training.student import Positive

__all__ = ["DistillationSettings", "Trainees"]

Trainees = Literal["lora", "replacement", "all"]


class DistillationSettings(BaseModel):
    """Distillation after pruning; text, amount and preset are those of LoRA fine-tuning.

    The loss of a position is ``T**2 * KL(softmax(t / T) || softmax(s / T))`` for the dense model's
    logits t and the pruned model's s; with ``text``, a share of it is the negative log-likelihood
    of the text's own next token. With ``own_answers`` the positions are those of tokens that the
    dense model wrote itself, once for all that is distilled; the validation loss is of the text.

    Reference:
        Hinton et al., arXiv:1503.02531; for pruned models Minitron, arXiv:2407.14679 (logits
        alone, all weights), and LinearPatch, arXiv:2505.24680, section 4.2 (the largest logits,
        what is inserted alone). Kim and Rush, arXiv:1606.07947, and LLM-QAT, arXiv:2305.17888,
        section 2.1 (what the teacher writes, drawn rather than the likeliest).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trainees: Trainees = Field(
        "lora",
        description="What learns: lora (adapters of the preset, merged afterwards), replacement "
        "(what the pruned model has that the dense one has not) or all (every weight).",
    )
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1.0, description="What the logits of both models are divided by."
    )
    top_k: Positive | None = Field(
        None, description="The dense model's largest logits, which alone count; none for all."
    )
    text: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of the loss that is of the text's own next token."
    )
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Peak learning rate; none for the preset's."
    )
    own_answers: Positive | None = Field(
        None,
        description="Tokens at the end of each sequence, or the most of an instruction's answer, "
        "that the dense model writes itself, on which alone is learnt; none for the text as it is.",
    )
    own_temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        1.0,
        description="What its logits are divided by where it draws own answers; 0 takes the "
        "likeliest tokens.",
    )

    @model_serializer(mode="wrap")
    def _in_force(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """All values; without those of own answers where there are none."""
        found: dict[str, Any] = handler(self)
        return found if self.own_answers else {k: v for k, v in found.items() if k[:4] != "own_"}

    def recipe(self, preset: LoraRecipe) -> LoraRecipe:
        """A recipe with what differs here."""
        rate = self.learning_rate
        return preset if rate is None else replace(preset, learning_rate=rate)
