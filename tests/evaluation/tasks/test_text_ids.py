from __future__ import annotations

from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from streamline.evaluation.tasks import text_ids
from streamline.evaluation.tasks.text_ids import fit_texts, full_text_ids, token_ids
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
    assert full_text_ids(tokenizer, ["abcdefgh", ""], 9) == [whole, tokenizer("")["input_ids"]]
    short, end = full_text_ids(tokenizer, ["ab", "abcdefgh"], 5)
    assert short == tokenizer("ab")["input_ids"]
    assert len(end) == 5
    assert end[:n_special] == whole[:n_special]
    assert end[n_special:] == whole[-(5 - n_special) :]


@pytest.mark.parametrize("make", [tiny_tokenizer, _with_bos])
def test_fit_text_is_the_end_and_never_too_long(make):
    tokenizer = make()
    assert fit_texts(tokenizer, ["short", ""], 20) == ["short", ""]
    short, end = fit_texts(tokenizer, ["abc", "abcdefghij"], 6)
    assert short == "abc"
    assert "abcdefghij".endswith(end)
    assert [tokenizer(end)["input_ids"]] == full_text_ids(tokenizer, ["abcdefghij"], 6)


def test_fit_text_never_ends_within_a_character():
    tokenizer = _with_bos()
    for length in range(4, 14):
        (end,) = fit_texts(tokenizer, ["一二三四五"], length)
        assert "一二三四五".endswith(end)
        assert len(tokenizer(end)["input_ids"]) <= length


@pytest.mark.parametrize("options", [{}, {"add_special_tokens": False}])
@pytest.mark.parametrize("make", [tiny_tokenizer, _with_bos])
def test_texts_are_encoded_some_at_a_time_as_each_alone(make, options, monkeypatch):
    monkeypatch.setattr(text_ids, "_AT_ONCE", 3)
    tokenizer, texts = make(), ["abc", "", "一二", "abc", " d", "e\n", "f" * 9]
    alone = [tokenizer(text, **options)["input_ids"] for text in texts]
    calls, original = [], type(tokenizer).__call__

    def noted(self, given, **more):
        calls.append(given)
        return original(self, given, **more)

    monkeypatch.setattr(type(tokenizer), "__call__", noted)
    assert list(token_ids(tokenizer, texts, **options)) == alone
    assert calls == [texts[:3], texts[3:6], texts[6:]]
    assert list(token_ids(tokenizer, [])) == [] == full_text_ids(tokenizer, [])
