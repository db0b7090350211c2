from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from streamline.errors import ConfigError
from streamline.evaluation.generation.prompts import Prompt, Stops, alike


def prompt(*tokens: int, stops: tuple[str, ...] = ()) -> Prompt:
    return Prompt(tokens, stops, 4)


@pytest.mark.parametrize(("tokens", "new"), [((), 4), ((1, 2), 0)])
def test_a_prompt_begins_and_goes_on(tokens: tuple[int, ...], new: int) -> None:
    with pytest.raises(ConfigError, match=f"got {len(tokens)} and {new}"):
        Prompt(tokens, (), new)


def test_prompts_that_begin_alike_are_taken_together() -> None:
    one, two = tuple(range(40)), tuple(range(100, 135))
    prompts = [
        prompt(*one, 1, 2), prompt(7), prompt(*two, 5), prompt(*one, 1, 3), prompt(*two),
        prompt(*one, 9), prompt(*range(200, 250)),
    ]  # fmt: skip
    assert alike(prompts) == [(40, [0, 3, 5]), (34, [2, 4]), (0, [1, 6])]


def test_the_same_prompt_twice_keeps_its_last_token() -> None:
    assert alike([prompt(*range(40)), prompt(*range(40))]) == [(39, [0, 1])]


def test_stops_are_found_across_tokens_and_only_at_the_end(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    first, second = prompt(1, stops=("abc", "\n\n")), prompt(1, stops=("b",))
    stops = Stops([first, second], tokenizer)

    def found(asked: Prompt, text: str) -> bool:
        return stops.found([(asked, tokenizer.encode(text))])[0]

    assert found(first, "xxabc") and found(first, "a\n\n") and not found(first, "xab")
    assert found(first, "abcde") and not found(first, "abcdef")  # two tokens of grace
    assert not found(first, "ccb") and found(second, "ccb")
    assert stops.found([(first, [1]), (second, tokenizer.encode("b"))]) == [False, True]
    assert Stops([prompt(1)], tokenizer).found([(prompt(1), [1])]) == [False]
