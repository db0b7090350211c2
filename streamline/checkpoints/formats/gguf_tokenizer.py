"""Tokenizers in GGUF files: the kinds whose way of splitting text llama.cpp has a name for.

Known are sentencepiece models and byte-level BPE that splits text as GPT-2, Llama 3, Qwen 2 or
SmolLM2 does; any other is refused, since llama.cpp would read texts otherwise.

Example::

    why_no_tokenizer(folder)           # None, or why it cannot be written
    add_tokenizer(writer, folder, vocab_size=49152)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from gguf.vocab import SentencePieceVocab

from streamline.checkpoints.portable import has_tokenizer
from streamline.reading import read_json

__all__ = ["KNOWN", "add_tokenizer", "why_no_tokenizer"]

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
KNOWN = ("sentencepiece", *_SPLITS.values())


def why_no_tokenizer(folder: Path) -> str | None:
    """Why the tokenizer of a folder cannot be written; None if it can, or if there is none."""
    if not has_tokenizer(folder) or (folder / "tokenizer.model").is_file():
        return None
    if _split(folder) in _SPLITS:
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
        vocab_size: Rows of the model's embeddings; rows beyond the tokenizer's are unused tokens.
    """
    if not has_tokenizer(folder):
        writer.add_tokenizer_model("none")
        return
    tokens = [(f"[PAD{index}]".encode(), -10000.0, TokenType.UNUSED) for index in range(vocab_size)]
    pieces = (folder / "tokenizer.model").is_file()
    if pieces:
        for index, row in enumerate(SentencePieceVocab(folder).all_tokens()):
            tokens[index] = row
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([score for _, score, _ in tokens])
    else:
        for index, (text, kind) in _bpe_tokens(folder).items():
            tokens[index] = (text.encode(), 0.0, kind)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_SPLITS[_split(folder)])
    writer.add_token_list([text for text, _, _ in tokens])
    writer.add_token_types([kind for _, _, kind in tokens])
    special = SpecialVocab(folder, load_merges=not pieces, n_vocab=vocab_size)
    special.add_to_gguf(writer, quiet=True)


def _bpe_tokens(folder: Path) -> dict[int, tuple[str, TokenType]]:
    """The tokens of a byte-level BPE by index."""
    tokenizer = read_json(folder / "tokenizer.json", "")
    found = {index: (text, TokenType.NORMAL) for text, index in tokenizer["model"]["vocab"].items()}
    for added in tokenizer["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        found[added["id"]] = (added["content"], kind)
    return found


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
