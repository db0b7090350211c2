from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from streamline.evaluation.tasks.text_ids import fit_text, full_text_ids
from streamline.testing.models import tiny_tokenizer


def _with_bos() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.mark.parametrize("make", [tiny_tokenizer, _with_bos])
def test_full_text_ids_are_truncated_on_the_left_and_keep_bos(make):
    tokenizer = make()
    whole = tokenizer("abcdefgh")["input_ids"]
    n_special = len(whole) - 8
    assert full_text_ids(tokenizer, "abcdefgh", 9) == whole
    end = full_text_ids(tokenizer, "abcdefgh", 5)
    assert len(end) == 5
    assert end[:n_special] == whole[:n_special]
    assert end[n_special:] == whole[-(5 - n_special) :]


@pytest.mark.parametrize("make", [tiny_tokenizer, _with_bos])
def test_fit_text_is_the_end_and_never_too_long(make):
    tokenizer = make()
    assert fit_text(tokenizer, "short", 20) == "short"
    end = fit_text(tokenizer, "abcdefghij", 6)
    assert "abcdefghij".endswith(end)
    assert tokenizer(end)["input_ids"] == full_text_ids(tokenizer, "abcdefghij", 6)


def test_fit_text_never_ends_within_a_character():
    tokenizer = _with_bos()
    for length in range(4, 14):
        end = fit_text(tokenizer, "一二三四五", length)
        assert "一二三四五".endswith(end)
        assert len(tokenizer(end)["input_ids"]) <= length
