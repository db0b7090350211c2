"""Every architecture of the table, through each seam that depends on how it is built."""

from __future__ import annotations

import copy
from pathlib import Path as Folder
from typing import Any

import pytest
import torch
from families import EVERY, TREES
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from streamline.baselines._slicing import principal, slice_model
from streamline.baselines.llm_pruner import LLMPruner
from streamline.baselines.slicegpt import SliceGPT
from streamline.calibration import measure
from streamline.checkpoints.checkpoint import load, save
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.evaluation.generation.engine import generate
from streamline.evaluation.generation.prompts import Prompt
from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.scoring.perplexity import perplexity
from streamline.evaluation.scoring.score import score
from streamline.method import Pruned
from streamline.methods.layers import projection
from streamline.methods.replacement import INITS, added_parameters, make
from streamline.methods.sublayers import remove_sublayer
from streamline.plan import Plan, Span, Step
from streamline.streaming.opening import open_streamed
from streamline.testing import check_method
from streamline.testing.models import tiny_config, tiny_model

every = pytest.mark.parametrize("family", EVERY)
tied_and_untied = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])

#: Shapes that a family has besides its usual one.
SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    ("opt", {"_remove_final_layer_norm": True}),
    ("falcon", {"new_decoder_architecture": True}),
    ("falcon", {"parallel_attn": False}),
    ("falcon", {"alibi": True}),
    ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("gemma2", {"sliding_window": 4}),
    ("gemma3_text", {"sliding_window": 4}),
    ("mistral", {"sliding_window": 4}),
    ("mixtral", {"sliding_window": 4}),
    ("olmoe", {"clip_qkv": 0.5, "norm_topk_prob": True}),
    ("qwen3_moe", {"mlp_only_layers": [1]}),
    ("qwen3_moe", {"decoder_sparse_step": 2}),
]
REACHED = {
    "slicegpt": {"llama", "mistral", "qwen2", "qwen3", "phi3", "opt", "gpt_neox"},
    "llm-pruner": {
        "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "opt", "gpt2",
        "gpt_neox",
    },
}  # fmt: skip
"""The families whose every layer a method knows how to make narrower."""
TOKENS = torch.randint(0, 250, (4, 24), generator=torch.Generator().manual_seed(1))
IDS = TOKENS[:2, :10]


def padded() -> Tensor:
    """A mask of `IDS` with padding on the left of the first row."""
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    return mask


def near(found: Tensor, wanted: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@torch.no_grad()
def check_logits(model: PreTrainedModel) -> None:
    """The decoder's logits are the model's, with and without padding."""
    decoder, mask = Decoder(model), padded()
    near(decoder.logits(IDS), model(IDS).logits)
    wanted = model(IDS, attention_mask=mask).logits
    near(decoder.logits(IDS, mask)[mask.bool()], wanted[mask.bool()])
    assert not torch.allclose(wanted[0, -1], model(IDS).logits[0, -1])


@tied_and_untied
@every
def test_logits_and_counts_are_the_models_own(family: str, tied: bool) -> None:
    model = tiny_model(family, n_layers=3, tied=tied)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    check_logits(model)
    counted = Decoder.from_config(tiny_config(family, n_layers=3, tied=tied))
    assert next(counted.model.parameters()).is_meta
    assert counted.n_parameters() == Decoder(model).n_parameters() == model.num_parameters()
    shell = sum(p.numel() for p in counted.shell_parameters())
    assert shell + sum(map(counted.layer_parameters, range(3))) == model.num_parameters()


@pytest.mark.parametrize(("family", "changes"), SHAPES)
def test_logits_of_unusual_shapes(family: str, changes: dict[str, Any]) -> None:
    check_logits(tiny_model(family, n_layers=4, **changes))


@pytest.mark.parametrize("family", TREES)
@torch.no_grad()
def test_tree_mask_equals_separate_sequences(family: str) -> None:
    model = tiny_model(family, n_layers=4)
    decoder = Decoder(model)
    context, a, b = IDS[:1, :5], IDS[:1, 5:8], IDS[1:, :2]
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 5, 6]])
    allowed = torch.tril(torch.ones(10, 10, dtype=torch.bool))
    allowed[8:, 5:8] = False
    mask = torch.zeros(1, 1, 10, 10).masked_fill(~allowed, torch.finfo(torch.float32).min)
    entry = decoder.enter(torch.cat([context, a, b], dim=1), mask, positions)
    hidden = entry.hidden
    for index, layer in enumerate(decoder.layers):
        hidden = decoder.run(layer, hidden, entry, index)
    logits = decoder.leave(hidden)
    near(logits[:, :8], model(torch.cat([context, a], dim=1)).logits)
    near(logits[:, 8:], model(torch.cat([context, b], dim=1)).logits[:, 5:])


def mixed(decoder: Decoder) -> Pruned:
    """Layers 0 and 1 an FFN, 2 without attention, 3 gone, 4 without MLP, 5 and 6 one, repeated."""
    first, last = Span(0, 2), Span(5, 7)
    steps = (
        Step(0, "ffn"), Step(2, "no-attention"), Step(4, "no-mlp"), Step(5, "shared-layer"),
    )  # fmt: skip
    return Pruned(
        Plan(7, steps),
        {
            0: make("ffn", decoder, first),
            1: remove_sublayer(decoder, 2, "attention"),
            2: remove_sublayer(decoder, 4, "mlp"),
            3: make("shared-layer", decoder, last, init="first"),
        },
    )


def written(model: Any, use_cache: bool) -> Tensor:
    """Eight tokens, greedily."""
    found: Tensor = model.generate(
        IDS,
        attention_mask=padded(),
        use_cache=use_cache,
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=256,
        eos_token_id=None,
    )
    return found


@every
@torch.no_grad()
def test_a_path_is_a_model_that_generates_with_its_cache(family: str) -> None:
    # A window shorter than the sequence, so that the two kinds of attention differ.
    changes = {"sliding_window": 4} if family.startswith("gemma") else {}
    decoder = Decoder(tiny_model(family, n_layers=7, **changes))
    path, mask = mixed(decoder).path(decoder), padded()
    model = assemble(path)
    entry = decoder.enter(IDS, mask)
    hidden = entry.hidden
    for node in path.nodes:
        hidden = decoder.run(node.module, hidden, entry, node.layer)
    found = model(IDS, attention_mask=mask).logits
    near(found[mask.bool()], decoder.leave(hidden)[mask.bool()])
    assert torch.equal(written(model, True), written(model, False))
    assert model.num_parameters() == path.n_parameters()


@tied_and_untied
@every
@torch.no_grad()
def test_a_checkpoint_is_the_model_that_was_saved(
    family: str, tied: bool, tokenizer: PreTrainedTokenizerFast, tmp_path: Folder
) -> None:
    model = tiny_model(family, n_layers=7, tied=tied)
    decoder = Decoder(model)
    pruned = mixed(decoder)
    save(pruned, decoder, tokenizer, tmp_path, {}, verify=False)
    loaded, _, info = load(tmp_path)
    if family != "falcon":  # it chooses its attention class when it is made
        loaded.set_attn_implementation("eager")
    expected = assemble(pruned.path(decoder))(IDS).logits
    near(loaded(IDS).logits, expected, 1e-5 if family == "falcon" else 0.0)
    assert loaded.num_parameters() == pruned.n_parameters(decoder)
    assert info.plan == pruned.plan and Decoder(loaded).family is decoder.family


@pytest.mark.parametrize("part", ["attention", "mlp"])
@every
@torch.no_grad()
def test_a_removed_sublayer_is_one_that_gives_zeros(family: str, part: Any) -> None:
    decoder = Decoder(tiny_model(family, n_layers=3))
    entry = decoder.enter(IDS)
    zeroed = copy.deepcopy(decoder.layers[1])
    out = decoder.family.o if part == "attention" else decoder.family.mlp_out
    for parameter in projection(zeroed, out)[1].values():
        parameter.zero_()
    found = decoder.run(remove_sublayer(decoder, 1, part), entry.hidden, entry, 1)
    near(found, decoder.run(zeroed, entry.hidden, entry, 1))
    assert not torch.allclose(found, decoder.run(decoder.layers[1], entry.hidden, entry, 1))


@pytest.mark.parametrize("kind", ["ffn", "layer", "multiple-swiglu"])
@every
@torch.no_grad()
def test_a_replacement_runs_where_the_layers_were_and_is_counted(family: str, kind: str) -> None:
    decoder, span = Decoder(tiny_model(family, n_layers=4)), Span(1, 4)
    module = make(kind, decoder, span, init=INITS[kind.split("-")[-1]][0])
    entry = decoder.enter(IDS)
    output = decoder.run(module, entry.hidden, entry, span.start)
    assert output.shape == entry.hidden.shape
    assert not torch.allclose(output, entry.hidden)
    counted = Decoder.from_config(tiny_config(family, n_layers=4))
    added = added_parameters(kind, counted)(len(span))
    assert added == sum(p.numel() for p in module.parameters())


# Gemma-2 caps its attention scores, which only the eager function can.
@pytest.mark.parametrize(
    ("family", "attention"),
    [(family, "eager") for family in EVERY]
    + [(family, "sdpa") for family in EVERY if family != "gemma2"],
)
@torch.no_grad()
def test_scores_and_perplexity_are_the_models_own(family: str, attention: str) -> None:
    model = tiny_model(family, n_layers=3)
    model.set_attn_implementation(attention)
    rows = [tuple(row) for row in TOKENS.tolist()]
    requests = [
        Request("t", doc, option, context, rows[option][8 : 9 + 3 * option])
        for doc, context in enumerate((rows[0][:6], rows[0][:3] + rows[1][:4]))
        for option in range(4)
    ]
    paths = [dense_path(Decoder(model))]
    (answers,) = score(paths, requests, batch_tokens=40)
    for request, found in zip(requests, answers.loglikelihood, strict=True):
        logits = model(torch.tensor([request.inputs])).logits[0].log_softmax(-1)
        target = torch.tensor(request.continuation)
        wanted = logits[-len(target) :].gather(1, target[:, None]).sum()
        assert found == pytest.approx(float(wanted), rel=1e-5, abs=2e-5)
    (text,) = perplexity(paths, TOKENS, batch_tokens=50)
    assert text.mean_nll == pytest.approx(float(model(TOKENS, labels=TOKENS).loss), rel=1e-5)


@pytest.mark.parametrize("family", TREES)
@torch.no_grad()
def test_texts_are_those_of_generate(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    decoder = Decoder(tiny_model(family, n_layers=4))
    paths = [dense_path(decoder), Pruned(Plan.drop(4, [1, 2])).path(decoder)]
    prompts = [Prompt(tuple(TOKENS[i, :length].tolist()), (), 6) for i, length in ((0, 20), (1, 9))]
    found: dict[tuple[int, int], list[int]] = {}
    generate(
        paths, prompts, tokenizer,
        written=lambda path, prompt, tokens: found.update({(path, prompt): list(tokens)}),
    )  # fmt: skip
    for i, model in enumerate(map(assemble, paths)):
        for j, prompt in enumerate(prompts):
            ids = torch.tensor([prompt.tokens])
            wanted = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                    max_new_tokens=6, pad_token_id=256)  # fmt: skip
            assert found[i, j] == wanted[0, ids.shape[1] :].tolist()


@every
def test_a_streamed_model_is_calibrated_as_one_in_memory(family: str, tmp_path: Folder) -> None:
    model = tiny_model(family, n_layers=3, tied=family == "qwen2")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    streamed = open_streamed(tmp_path, model.config, scratch=tmp_path, state_bytes=30_000)
    streamed.model.set_attn_implementation(model.config._attn_implementation)
    with streamed.source as source:
        wanted, found = (measure(d, TOKENS, batch_tokens=48) for d in (Decoder(model), streamed))
        assert torch.equal(found.cosine, wanted.cosine)
        assert set(source.reads.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("method", [SliceGPT(), LLMPruner()], ids=lambda method: method.name)
@every
def test_methods_that_change_every_layer_keep_the_contract_or_refuse(
    family: str, method: Any
) -> None:
    outcomes = list(check_method(method, [family]))
    assert [outcome for outcome in outcomes if outcome.status == "failed"] == []
    refused = any(outcome.status == "refused" for outcome in outcomes)
    assert refused == (family not in REACHED[method.name])


@pytest.mark.parametrize("family", sorted(REACHED["slicegpt"]))
@torch.no_grad()
def test_a_rotation_by_principal_directions_changes_no_logit(family: str) -> None:
    model = tiny_model(family, n_layers=3)
    rotated = slice_model(Decoder(model), 32, TOKENS, principal)
    near(rotated(TOKENS).logits, model(TOKENS).logits, 1e-4)
