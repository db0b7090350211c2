"""What lies beside the weights of a checkpoint, as other tools and older versions read it.

Tokenizer files are copied byte for byte from where the tokenizer came from: written anew, they name
classes that other tools do not know. The config says what it says in the words of transformers 4,
too.

Example:
    write_tokenizer(tokenizer, folder)
    add_older_keys(folder / "config.json")
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from streamline.files import write_json_atomic
from streamline.sources.hub.commits import known_commit
from streamline.sources.hub.failures import hub_errors

__all__ = ["TOKENIZER_FILES", "add_older_keys", "has_tokenizer", "write_tokenizer"]

#: Files of tokenizers, as patterns.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
    "tokenization_*.py",
)

#: What model types called a rotary setting before it had one name.
_RENAMED = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Put a tokenizer into a folder: the files it came from, or else new ones.

    Args:
        tokenizer: As it is used. Where it was changed in memory, its files are no longer it, and
            new ones are written; a padding token alone is no such change.
        folder: The checkpoint's.
    """
    source = _source(str(tokenizer.name_or_path))
    copied = [] if source is None else _copy(source, folder)
    if copied and _same(tokenizer, folder):
        return
    for path in copied:
        path.unlink()
    tokenizer.save_pretrained(folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any(folder.glob("tokenizer*.json")) or (folder / "tokenizer.model").is_file()


def add_older_keys(file: Path) -> None:
    """Let a config say number format, rotary positions and experts under older names as well.

    Args:
        file: A `config.json` as transformers 5 writes it; written anew.
    """
    fields = json.loads(file.read_text(encoding="utf-8"))
    older: dict[str, Any] = {}
    if "dtype" in fields:
        older["torch_dtype"] = fields["dtype"]
    kind = fields.get("base_model_type", fields["model_type"])
    if kind == "qwen3_moe":
        older["num_experts"] = fields["num_local_experts"]
    rope = fields.get("rope_parameters")
    if rope and not any(isinstance(value, dict) for value in rope.values()):
        older |= _older_rope(rope, kind)
    write_json_atomic(file, dict(sorted((older | fields).items())))


def _older_rope(rope: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Rotary positions as transformers 4 names them."""
    rest = dict(rope)
    kind = rest.pop("rope_type", "default")
    older: dict[str, Any] = {"rope_scaling": None}
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rest:
            older[_RENAMED.get(model_type, {}).get(name, name)] = rest.pop(name)
    if kind == "longrope":  # Phi-3 takes exactly these
        rest.pop("original_max_position_embeddings", None)
        older["rope_scaling"] = {"type": kind, **rest}
    elif kind != "default":
        older["rope_scaling"] = {"rope_type": kind, **rest}
    return older


def _source(name: str) -> Path | None:
    """The folder that a tokenizer was read from, of its name; a hub's files are fetched."""
    if not name:
        return None
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    repository, _, revision = name.partition("@")
    if repository.count("/") > 1:
        return None
    commit = known_commit(repository, revision or None) or revision or None
    known = try_to_load_from_cache(repository, "config.json", revision=commit)
    if not isinstance(known, str):
        return None
    cached = Path(known).parent
    try:  # a fast tokenizer was read from some of the files only
        patterns = list(TOKENIZER_FILES)
        return Path(snapshot_download(repository, revision=cached.name, allow_patterns=patterns))
    except hub_errors():
        return cached


def _copy(source: Path, folder: Path) -> list[Path]:
    """Copy a tokenizer's files; returns the copies."""
    copies = []
    for file in sorted({file for pattern in TOKENIZER_FILES for file in source.glob(pattern)}):
        target = folder / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        copies.append(shutil.copyfile(file, target))
    return copies


def _same(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    """Whether the tokenizer of a folder is one that is in use."""
    if type(tokenizer).__module__.split(".")[0] != "transformers":
        return True  # of a class that came with its files
    try:
        other: Any = AutoTokenizer.from_pretrained(folder)
    except Exception:  # whatever its files need, new ones are read
        return False
    return bool(_content(tokenizer) == _content(other))


def _content(tokenizer: Any) -> Any:
    """What a tokenizer makes of texts."""
    named = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found = {} if backend is None else json.loads(backend.to_str())
    return (
        tokenizer.get_vocab(),
        named | {"pad_token": None},
        tokenizer.chat_template,
        {key: value for key, value in found.items() if key not in ("padding", "truncation")},
    )
