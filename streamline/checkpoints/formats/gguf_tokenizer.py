"""Tokenizers in GGUF files: the kinds whose way of splitting text llama.cpp has a name for.

Known are BPE of sentencepiece (Llama 2, Mistral) and byte-level BPE that splits text as GPT-2,
Llama 3, Qwen 2 or SmolLM2 does; any other is refused, since llama.cpp would read texts otherwise.

Example::

    why_no_tokenizer(folder)           # None, or why it cannot be written
    add_tokenizer(writer, folder, vocab_size=49152)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from streamline.checkpoints.portable import has_tokenizer
from streamline.reading import read_json

__all__ = ["KNOWN", "add_tokenizer", "why_no_tokenizer"]

_FORM: Any = sentencepiece_model_pb2  # its classes are made when it is imported

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: How a tokenizer splits text before BPE -> llama.cpp's name for it.
_SPLITS = {
    ("bytes and words",): "gpt-2",
    ("digits", "bytes and words"): "smollm",
    (_WORDS.replace("NUMBERS", r"\p{N}{1,3}"), "bytes"): "llama-bpe",
    (_WORDS.replace("NUMBERS", r"\p{N}"), "bytes"): "qwen2",
}
KNOWN = ("BPE of sentencepiece", *_SPLITS.values())

Token = tuple[str, float, TokenType]
"""Its text, its score and its kind."""


def why_no_tokenizer(folder: Path) -> str | None:
    """Why the tokenizer of a folder cannot be written; None if it can, or if there is none."""
    if not has_tokenizer(folder) or _sentencepiece(folder) or _split(folder) in _SPLITS:
        return None
    return (
        "its tokenizer splits text in a way that llama.cpp has no name for here; known are "
        f"{', '.join(KNOWN)}"
    )


def add_tokenizer(writer: GGUFWriter, folder: Path, vocab_size: int) -> None:
    """Add a folder's tokenizer to a file, or say that there is none.

    Args:
        writer: The file's.
        folder: The checkpoint's.
        vocab_size: Rows of the model's embeddings; rows beyond the tokenizer's are unused tokens,
            tokens beyond the rows are left out.
    """
    if not has_tokenizer(folder):
        writer.add_tokenizer_model("none")
        return
    tokens: dict[int, Token] = {
        index: (f"[PAD{index}]", -10000.0, TokenType.UNUSED) for index in range(vocab_size)
    }
    model, added = _sentencepiece(folder), _added_tokens(folder)
    if model is None:
        tokens |= _bpe_tokens(folder) | added
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_SPLITS[_split(folder)])
    else:
        pieces = [(piece.piece, piece.score, TokenType(piece.type)) for piece in model.pieces]
        known = {text for text, _, _ in pieces}
        tokens |= dict(enumerate(pieces))
        tokens |= {index: one for index, one in added.items() if one[0] not in known}
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(model.normalizer_spec.add_dummy_prefix)
        writer.add_token_scores([tokens[index][1] for index in range(vocab_size)])
    writer.add_token_list([tokens[index][0].encode() for index in range(vocab_size)])
    writer.add_token_types([tokens[index][2] for index in range(vocab_size)])
    special = SpecialVocab(folder, load_merges=model is None, n_vocab=vocab_size)
    special.add_to_gguf(writer, quiet=True)


def _sentencepiece(folder: Path) -> Any:
    """The sentencepiece model of a folder; None if it has none that is BPE.

    Other libraries keep models of another form under the same name.
    """
    file, model = folder / "tokenizer.model", _FORM.ModelProto()
    if not file.is_file():
        return None
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError:
        return None
    return model if model.trainer_spec.model_type == _FORM.TrainerSpec.BPE else None


def _bpe_tokens(folder: Path) -> dict[int, Token]:
    """The tokens of a byte-level BPE by index."""
    vocabulary = read_json(folder / "tokenizer.json", "")["model"]["vocab"]
    return {index: (text, 0.0, TokenType.NORMAL) for text, index in vocabulary.items()}


def _added_tokens(folder: Path) -> dict[int, Token]:
    """The tokens that were added to those of the tokenizer's model, by index."""
    names = ("added_tokens.json", "tokenizer_config.json", "tokenizer.json")
    plain, config, whole = (
        read_json(folder / name, "") if (folder / name).is_file() else {} for name in names
    )
    found = {index: {"content": text} for text, index in plain.items()}
    found |= {int(index): one for index, one in config.get("added_tokens_decoder", {}).items()}
    found |= {one["id"]: one for one in whole.get("added_tokens", ())}
    kinds = {True: TokenType.CONTROL, False: TokenType.USER_DEFINED}
    return {
        index: (one["content"], -1000.0, kinds[bool(one.get("special"))])
        for index, one in found.items()
    }


def _split(folder: Path) -> tuple[str, ...]:
    """How the tokenizer of a folder splits text before BPE; empty if it is another kind."""
    file = folder / "tokenizer.json"
    tokenizer = read_json(file, "") if file.is_file() else {"model": {}}
    if tokenizer["model"].get("type") != "BPE" or tokenizer["model"].get("byte_fallback"):
        return ()
    steps: list[dict[str, Any]] = [tokenizer.get("pre_tokenizer") or {}]
    if steps[0].get("type") == "Sequence":
        steps = steps[0]["pretokenizers"]
    return tuple(map(_step, steps))


def _step(step: dict[str, Any]) -> str:
    kind = step.get("type")
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return "bytes and words" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step["individual_digits"]:
        return "digits"
    isolated = step.get("behavior") == "Isolated" and not step.get("invert")
    if kind == "Split" and isolated and "Regex" in step["pattern"]:
        return str(step["pattern"]["Regex"])
    return f"unknown: {kind}"
