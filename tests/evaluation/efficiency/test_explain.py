from __future__ import annotations

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, dense_path
from streamline.evaluation.efficiency.counts import counts
from streamline.evaluation.efficiency.explain import explain
from streamline.methods.sublayers import Sublayers
from streamline.testing.models import tiny_model


def values(model, dense, decode, prefill=None, spread=0.01):
    """What would have been measured, with ratios of our choice to the promised one."""
    own, before = counts(model, 16), counts(dense, 16)
    promise = before["parameters"] / own["parameters"]

    def speed(share):
        ratio = share * promise
        return [{"ratio": {"median": ratio, "lower": ratio - spread, "upper": ratio + spread}}]

    found = {"decode": speed(decode), "prefill": speed(prefill or decode)}
    return {**own, "dense": before, "way": "cache", **found}


def pair(path_of, family="llama", **changes):
    decoder = Decoder(tiny_model(family, n_layers=6, **changes).eval())
    return assemble(path_of(decoder)), assemble(dense_path(decoder))


def short(decoder):
    return Path(decoder, dense_path(decoder).nodes[2:])


def test_a_ratio_as_promised_needs_no_word():
    model, dense = pair(short)
    assert explain(model, dense, values(model, dense, 1.0)) is None
    assert explain(model, dense, values(model, dense, 0.96)) is None
    assert explain(model, dense, values(model, dense, 0.9, spread=0.3)) is None  # within its spread
    assert explain(dense, dense, values(dense, dense, 0.5)) is None


def test_the_head_and_the_embeddings_are_named_where_they_weigh():
    model, dense = pair(short, tied=True)
    text = explain(model, dense, values(model, dense, 1.0, 1.2))
    assert text.startswith("prefill ") and "the head, 2" in text and "looked up" not in text
    assert "the head" not in explain(model, dense, values(model, dense, 0.8, 1.0))
    model, dense = pair(short, tied=False)
    assert "the embeddings, " in explain(model, dense, values(model, dense, 0.8))


def test_layers_without_attention_and_odd_widths_are_named():
    model, dense = pair(lambda decoder: Sublayers(decoder).path([(1, "attention")]))
    text = explain(model, dense, values(model, dense, 0.8))
    assert "1 of 6 layers have no attention" in text and "no multiple of 16" not in text
    narrow = tiny_model("llama", n_layers=6, intermediate_size=43).eval()
    assert "widths such as 43" in explain(narrow, dense, values(narrow, dense, 0.8))


def test_what_the_shapes_do_not_explain_is_said_too():
    small = {"vocab_size": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model, dense = pair(short, hidden_size=64, intermediate_size=512, **small)
    text = explain(model, dense, values(model, dense, 0.7))
    assert text.endswith("nothing in its shapes explains it")
    assert "fewer parameters promise 1.5" in text
