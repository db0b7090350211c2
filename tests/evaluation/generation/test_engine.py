"""Generation side by side against ``model.generate`` on each model, one prompt at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from streamline.baselines.slicegpt import SliceGPT
from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, Path, PathTrie, dense_path
from streamline.errors import StreamlineError
from streamline.evaluation.generation import engine as generation_engine
from streamline.evaluation.generation.alone import unsupported
from streamline.evaluation.generation.cache import CacheTrie
from streamline.evaluation.generation.engine import Limits, generate
from streamline.evaluation.generation.prompts import Prompt
from streamline.method import Pruned
from streamline.methods.replacement import make
from streamline.plan import Plan, Span
from streamline.testing.models import tiny_model
from streamline.testing.subject import Subject

Texts = dict[tuple[int, int], list[int]]


def prompts_of(seed: int = 0, n: int = 4, new: int = 6, common: int = 36) -> list[Prompt]:
    """Prompts of unequal length, all but the last two behind one prefix, one of them twice."""
    rng = random.Random(seed)
    shared = [rng.randrange(250) for _ in range(common)]
    out = []
    for i in range(n):
        rest = [rng.randrange(250) for _ in range(rng.randint(1, 12))]
        tokens = rest if i >= n - 2 else shared + rest
        out.append(Prompt(tuple(tokens), (), new - i % 3))
    return [*out, out[0]]


def variants(model: PreTrainedModel) -> list[Path]:
    """Dense, layers dropped, networks in the place of layers, a layer twice, and dense again."""
    decoder = Decoder(model)
    dense, span = dense_path(decoder), Span(1, 3)
    n = decoder.n_layers
    paths = [dense, Pruned(Plan.drop(n, (1, 2))).path(decoder, "dropped")]
    for kind in ("ffn", "layer"):
        module = make(kind, decoder, span, init="first" if "layer" in kind else "random", seed=0)
        plan = Plan.replace(n, span, kind)
        paths.append(Pruned(plan, modules={span.start: module.eval()}).path(decoder, kind))
    twice = (dense.nodes[0], Node(decoder.layers[0], 0), *dense.nodes[1:])
    paths.append(Path(decoder, twice, "twice"))
    return [*paths, dense_path(decoder, "again")]


@torch.no_grad()
def alone(model: PreTrainedModel, prompt: Prompt) -> list[int]:
    ids = torch.tensor([prompt.tokens])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=prompt.max_new_tokens,
        pad_token_id=256,
    )
    return out[0, ids.shape[1] :].tolist()


def together(
    paths: Sequence[Path],
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerFast,
    limits: Limits | None = None,
) -> Texts:
    found: Texts = {}

    def written(path: int, prompt: int, tokens: list[int]) -> None:
        assert (path, prompt) not in found
        found[path, prompt] = list(tokens)

    generate(paths, prompts, tokenizer, written=written, limits=limits)
    return found


def same(paths: Sequence[Path], prompts: Sequence[Prompt], found: Texts) -> None:
    models = [assemble(path) for path in paths]
    wanted = {(i, j): alone(m, p) for i, m in enumerate(models) for j, p in enumerate(prompts)}
    assert found == wanted


@pytest.fixture(params=[False, True], ids=["each", "together"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place of a module by itself, as on a CPU, or all together, as on an accelerator."""
    made = partial(CacheTrie, together=request.param)
    monkeypatch.setattr(generation_engine, "CacheTrie", made)


KINDS = [
    ("llama", "eager"),
    ("llama", "sdpa"),
    ("opt", "eager"),
    ("opt", "sdpa"),
    ("gpt2", "eager"),
]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("family", "implementation"), KINDS)
def test_texts_are_those_of_each_model_alone(
    family: str, implementation: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model(family, n_layers=3)
    model.set_attn_implementation(implementation)
    paths, prompts = variants(model), prompts_of()
    found = together(paths, prompts, tokenizer)
    assert len({tuple(text) for text in found.values()}) > len(prompts)
    same(paths, prompts, found)
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize(
    "limits",
    [
        Limits(batch_tokens=1, rows=1, cache_bytes=1),
        Limits(batch_tokens=20, rows=14, cache_bytes=1 << 30),
        Limits(batch_tokens=2048, rows=512, cache_bytes=1 << 30),
    ],
)
@pytest.mark.usefixtures("way")
def test_texts_do_not_depend_on_what_is_done_at_once(
    limits: Limits, tokenizer: PreTrainedTokenizerFast
) -> None:
    paths, prompts = variants(tiny_model("llama", n_layers=3)), prompts_of(1)
    assert together(paths, prompts, tokenizer, limits) == together(paths, prompts, tokenizer)


def test_models_of_their_own_generate_beside_the_others(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    subject = Subject(SliceGPT(), "llama")
    sliced = subject.pruned.path(subject.decoder)
    assert sliced.decoder is not subject.decoder
    paths = [sliced, dense_path(subject.decoder), dense_path(Decoder(tiny_model("opt", seed=3)))]
    prompts = prompts_of(2, n=4)
    same(paths, prompts, together(paths, prompts, tokenizer))


@pytest.mark.usefixtures("way")
def test_a_row_that_is_done_goes_on_to_no_position_that_its_model_has_not(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny_model("gpt2", n_layers=2)
    longest = Prompt((5, 6, 7, 8) * 127, (), 4)  # as many as it has
    prompts = [longest, *(Prompt((i, 7), (), 9) for i in range(15))]
    paths = [dense_path(Decoder(model))]
    same(paths, prompts, together(paths, prompts, tokenizer))


@pytest.mark.usefixtures("way")
def test_rows_end_at_the_end_of_text(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model("llama", n_layers=3)
    paths, prompts = variants(model), prompts_of(3, new=9)
    whole = together(paths, prompts, tokenizer)
    ends = [whole[0, 0][5], whole[1, 2][3]]
    model.generation_config.eos_token_id = ends
    found = together(paths, prompts, tokenizer)
    assert found[0, 0][-1] in ends and len(found[0, 0]) <= 6
    assert sum(map(len, found.values())) < sum(map(len, whole.values()))
    same(paths, prompts, found)


def test_a_stop_string_of_several_tokens_ends_its_own_prompt(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    paths = [dense_path(Decoder(tiny_model("llama", n_layers=3)))]
    first, second, *_ = prompts_of(4, new=16)
    free = together(paths, [first, second], tokenizer)
    text = tokenizer.decode(free[0, 0])
    stop = text[6:9]
    stopped = Prompt(first.tokens, ("never", stop), first.max_new_tokens)
    found = together(paths, [stopped, second], tokenizer)
    ended = tokenizer.decode(found[0, 0])
    assert ended.endswith(stop) and ended == text[: text.index(stop) + len(stop)]
    assert found[0, 1] == free[0, 1]


def test_shared_work_is_done_once(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny_model("llama", n_layers=3)
    paths, prompts = variants(model), prompts_of()[:2]
    trie = CacheTrie(PathTrie(paths))
    assert len(trie.paths) == len(paths) - 1 and [0, len(paths) - 1] in trie.paths
    tokens: list[int] = []
    first = Decoder(model).layers[0]
    first.register_forward_hook(lambda _m, args, _o: tokens.append(args[0].shape[:2].numel()))
    together(paths, prompts, tokenizer)
    longest = max(len(prompt.tokens) for prompt in prompts)
    read, rows = len(prompts) * (longest - 36), len(prompts) * len(trie.paths)
    # The prefix, the prompts, one token of every row: each on entering (where the layer only
    # hands on), once for all paths, and once more for the path that has the layer twice.
    assert tokens[:9] == [36] * 3 + [read] * 3 + [rows, rows, len(prompts)]


def test_a_module_runs_once_for_all_places_that_paths_come_to_together(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", n_layers=3)
    paths, prompts = variants(model), prompts_of()[:2]
    trie = CacheTrie(PathTrie(paths), together=True)
    places = [[place.paths for place in step.places] for step in trie.steps]
    # Layer 0 for all and again for the path that has it twice, layers 1 and 2 of both dense ways,
    # and the two networks: six runs of a module, where eight places are.
    assert [len(one) for one in places] == [1, 1, 2, 1, 1, 2]
    assert len(CacheTrie(PathTrie(paths), together=False).steps) == sum(map(len, places)) == 8
    sizes: list[int] = []
    last = Decoder(model).layers[2]
    last.register_forward_hook(lambda _m, args, _o: sizes.append(len(args[0])))
    monkeypatch.setattr(generation_engine, "CacheTrie", partial(CacheTrie, together=True))
    together(paths, prompts, tokenizer)
    # The prefix, the prompts, the rows: each on entering, then for two places at once.
    assert sizes[:6] == [1, 2, 2, 4, len(prompts) * len(trie.paths), 4]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("room", [7, 11])
def test_nothing_is_lost_when_memory_runs_out(
    room: int, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, prompts = variants(tiny_model("llama", n_layers=3)), prompts_of(5)
    wanted = together(paths, prompts, tokenizer)
    likeliest, refused = generation_engine.likeliest, []

    def failing(decoder: Decoder, states: torch.Tensor) -> torch.Tensor:
        if len(states) > room:
            refused.append(len(states))
            raise torch.OutOfMemoryError("out of memory")
        return likeliest(decoder, states)

    monkeypatch.setattr(generation_engine, "likeliest", failing)
    assert together(paths, prompts, tokenizer) == wanted and refused


def test_what_is_done_again_when_memory_runs_out_is_not_counted_twice(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [Prompt((1, 2, n), (), 8 if n == 9 else 2) for n in range(4, 10)]
    likeliest, calls = generation_engine.likeliest, [0]
    done, told = set[int](), list[float]()

    def failing(decoder: Decoder, states: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 6:  # when all texts but one are done
            told.clear()
            raise torch.OutOfMemoryError("out of memory")
        return likeliest(decoder, states)

    monkeypatch.setattr(generation_engine, "likeliest", failing)
    model = tiny_model("llama", n_layers=1)
    model.generation_config.eos_token_id = None
    generate(
        [dense_path(Decoder(model))],
        prompts,
        tokenizer,
        written=lambda path, prompt, tokens: done.add(prompt),
        begun=lambda texts: told.append(len(done) + texts),
    )
    assert calls[0] > 6 and told == sorted(told) and (told[0], told[-1]) == (5, 6)


def test_one_prompt_that_does_not_fit_is_an_error(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(decoder: Decoder, states: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(generation_engine, "likeliest", failing)
    paths = [dense_path(Decoder(tiny_model("llama", n_layers=1)))]
    with pytest.raises(StreamlineError, match="memory ran out with one prompt of 41 tokens"):
        generate(paths, [Prompt((1,) * 41, (), 2)], tokenizer, written=lambda *_: None)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("bloom", {}, "no mask but its own"),
        ("falcon", {}, "no mask but its own"),
        ("mistral", {"sliding_window": 50}, "changes beyond 50 tokens, and there may be 51"),
        ("llama", {}, None),
        ("mistral", {"sliding_window": 51}, None),
    ],
)
def test_models_that_must_generate_by_themselves(
    family: str, changes: dict[str, int], reason: str | None
) -> None:
    found = unsupported(Decoder(tiny_model(family, n_layers=1, **changes)), 51)
    assert found is None if reason is None else reason in str(found)


def test_settings_that_change_the_likeliest_token_are_named() -> None:
    model = tiny_model("llama", n_layers=1)
    model.generation_config.update(temperature=0.2, top_p=0.5, num_beams=1, repetition_penalty=1.0)
    assert unsupported(Decoder(model), 20) is None
    model.generation_config.update(repetition_penalty=1.1, suppress_tokens=[3])
    asked = "its generation settings set repetition_penalty, suppress_tokens"
    assert unsupported(Decoder(model), 20) == asked
