"""What is put around a question: examples, a chat template, an instruction; as lm-eval's switches.

Example::

    prepare(["piqa"], tokenizer, max_length=2048, prompting=Prompting(num_fewshot=5))
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streamline.errors import ConfigError

__all__ = ["Prompting"]


class Prompting(BaseModel):
    """lm-eval's own switches of the same names, for its tasks and those in its convention.

    The tasks in OpenCompass's protocol have prompts of their own, which nothing here changes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_fewshot: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        None, description="Examples before each question; else the task's own number."
    )
    apply_chat_template: bool = Field(
        False, description="Put each prompt into the tokenizer's chat template."
    )
    system_instruction: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="An instruction before everything else."
    )
    fewshot_as_multiturn: bool = Field(
        False, description="Give examples as turns of a conversation, with the chat template."
    )

    @model_validator(mode="after")
    def _check_turns(self) -> Prompting:
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ValueError(
                "fewshot_as_multiturn makes turns of a chat template; give apply_chat_template too"
            )
        return self

    @property
    def is_default(self) -> bool:
        """Whether every prompt is the task's own."""
        return self == Prompting()

    @property
    def words(self) -> str | None:
        """What a table says of it beside the number of examples, or None."""
        turns = " with examples as turns" if self.fewshot_as_multiturn else ""
        chat = f"chat template{turns}" if self.apply_chat_template else None
        system = f"system instruction {self.system_instruction!r}"
        found = [chat, system if self.system_instruction else None]
        return ", ".join(text for text in found if text) or None

    def check(self, task: str, protocol: str) -> None:
        """Refuse a task whose prompts are fixed.

        Args:
            task: Its name.
            protocol: How it is scored.

        Raises:
            ConfigError: If a switch is set that would change nothing of it.
        """
        if not self.is_default and protocol != "lm-eval":
            raise ConfigError(
                f"{task} has the prompts of its protocol ({protocol}), which --num-fewshot, "
                "--apply-chat-template, --system-instruction and --fewshot-as-multiturn do not "
                "change; evaluate it in a run without them"
            )
