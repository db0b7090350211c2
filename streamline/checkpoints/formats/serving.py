"""Where a pruned model can be served, and a checkpoint in another format.

What can be done follows from what the model's layers are, whatever method made them.

Example::

    serves_in(form_of(pruned.path(decoder)))        # ["transformers", "vLLM", ...]
    write_format(Path("out/checkpoint"), "gguf", Path("out/served"))
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from streamline.checkpoints.folder import appearing, require_free, target_folder
from streamline.checkpoints.formats import gguf, mergekit, nemotron_nas
from streamline.checkpoints.formats.form import Form, form_of
from streamline.checkpoints.info import read_info
from streamline.checkpoints.portable import TOKENIZER_FILES
from streamline.engine.paths import Path as LayerPath
from streamline.engine.stored import stored_of

__all__ = ["FORMATS", "served", "serves_in", "write_format"]

FORMATS: dict[str, Callable[[Path, Path], None]] = {
    mergekit.NAME: mergekit.write_mergekit,
    gguf.NAME: gguf.write_gguf,
    nemotron_nas.NAME: nemotron_nas.write_nemotron_nas,
}
#: What runs any folder that transformers alone loads, of the types covered here.
_PLAIN = ("vLLM", "SGLang")


def served(path: LayerPath) -> list[str]:
    """Where a pruned model in memory can be served; nowhere if no checkpoint holds it.

    Args:
        path: From :meth:`streamline.method.Pruned.path`.
    """
    return [] if stored_of(path.decoder.model) is not None else serves_in(form_of(path))


def serves_in(form: Form) -> list[str]:
    """Where a model can be served, as its checkpoint is or in another format.

    Args:
        form: What its layers are.

    Returns:
        Names of tools; behind one what it needs of the checkpoint, such as ``--to gguf``.
    """
    found = ["transformers" if form.plain else "transformers (trust_remote_code)"]
    if form.plain:
        found += _PLAIN
    elif nemotron_nas.why_not(form) is None:
        found += [f"{engine} (--to nemotron-nas)" for engine in nemotron_nas.ENGINES]
    if gguf.why_not(form) is None:
        found.append("llama.cpp (--to gguf)")
    return found


def write_format(checkpoint: str | Path, name: str, out: str | Path) -> Path:
    """Write a checkpoint in another format, as a folder that appears whole or not at all.

    Args:
        checkpoint: A folder that :func:`streamline.checkpoints.checkpoint.save` wrote.
        name: One of :data:`FORMATS`.
        out: Must not exist or be empty.

    Returns:
        The folder.

    Raises:
        KeyError: If there is no such format.
        ConfigError: If the folder holds something.
        UnsupportedModelError: If the format cannot hold the model; the message says why.
        AssetError: If the checkpoint is none, or is damaged.
    """
    source, target = Path(checkpoint).expanduser(), target_folder(out)
    require_free(target)
    read_info(source)
    with appearing(target) as temporary:
        FORMATS[name](source, temporary)
        if name == nemotron_nas.NAME:
            # Not the card: it says how to load the checkpoint, and names files that stay there.
            beside = ("generation_config.json", *TOKENIZER_FILES)
            for file in (file for pattern in beside for file in source.glob(pattern)):
                place = temporary / file.relative_to(source)
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(file.read_bytes())
    return target
