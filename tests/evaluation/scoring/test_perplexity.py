from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from families import THREE
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, dense_path
from streamline.errors import ConfigError
from streamline.evaluation.scoring.perplexity import Perplexity, perplexity, text_windows
from streamline.testing.models import tiny_model


@torch.no_grad()
def reference(model: PreTrainedModel, windows: torch.Tensor) -> float:
    loss = model(windows, labels=windows).loss
    return float(loss)


def windows_of(n: int = 5, length: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (n, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", THREE)
def test_perplexity_is_the_models_own_loss(family: str) -> None:
    model = tiny_model(family, n_layers=2)
    windows = windows_of()
    (result,) = perplexity([dense_path(Decoder(model))], windows, batch_tokens=50)
    assert result.n_tokens == 5 * 23
    assert result.mean_nll == pytest.approx(reference(model, windows), rel=1e-5)
    assert result.value == pytest.approx(math.exp(result.mean_nll))


def test_the_error_of_the_mean_loss_is_that_of_the_windows_means() -> None:
    model = tiny_model("llama", n_layers=2)
    windows = windows_of()
    losses = [reference(model, window[None]) for window in windows]
    for batch_tokens in (24, 50, 400):
        (result,) = perplexity([dense_path(Decoder(model))], windows, batch_tokens=batch_tokens)
        assert result.stderr == pytest.approx(statistics.stdev(losses) / math.sqrt(5), rel=1e-4)
    (alone,) = perplexity([dense_path(Decoder(model))], windows[:1])
    assert alone.stderr is None


def test_all_paths_in_one_run(tiny_llama: Callable[..., PreTrainedModel]) -> None:
    decoder = Decoder(tiny_llama(n_layers=4))
    other = Decoder(tiny_model("opt", n_layers=2))
    short = Path(decoder, dense_path(decoder).nodes[:2])
    windows = windows_of()
    seen: list[tuple[int, int]] = []
    paths = [short, dense_path(other), dense_path(decoder)]
    results = perplexity(
        paths, windows, batch_tokens=48, progress=lambda done, total: seen.append((done, total))
    )
    for path, result in zip(paths, results, strict=True):
        assert result.mean_nll == pytest.approx(reference(assemble(path), windows), rel=1e-5)
    assert seen == [(48, 120), (96, 120), (120, 120)]


def test_windows_drop_the_rest(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = text_windows("abcdefghij", tokenizer, length=4)
    assert [tokenizer.decode(window) for window in windows] == ["abcd", "efgh"]


def test_perplexity_that_overflows_is_infinite() -> None:
    assert Perplexity(1e6, 5).value == math.inf
    assert math.isnan(Perplexity(math.nan, 5).value)


def test_too_short_a_text_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="text of 3 tokens cannot be cut into windows of 4"):
        text_windows("abc", tokenizer, length=4)


def test_windows_of_the_wrong_shape_are_refused() -> None:
    decoder = Decoder(tiny_model("llama", n_layers=1))
    with pytest.raises(ConfigError, match=r"got \[0, 4\]"):
        perplexity([dense_path(decoder)], torch.zeros(0, 4, dtype=torch.long))
