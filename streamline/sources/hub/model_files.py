"""Files of models on the hub, each model at one commit, and clear messages for what went wrong.

Example::

    with model_explained(resolve_model("llama2-7b")):
        fetch_weights("meta-llama/Llama-2-7b-hf", None)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from streamline.errors import AssetError, StreamlineError
from streamline.sources.folders import PICKLED, SAFE, layout
from streamline.sources.hub.arrivals import arrived
from streamline.sources.hub.commits import known_commit, model_commit
from streamline.sources.hub.failures import HubError, Wanted, causes, explanation, patiently
from streamline.sources.names import ModelSource, accepted_names

__all__ = [
    "TOKENIZER_FILES",
    "cached_folder",
    "fetch_tokenizer",
    "fetch_weights",
    "model_explained",
    "require_access",
]

TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model",
    "*.tiktoken", "chat_template*", "additional_chat_templates/*",
)  # fmt: skip
"""Files that a tokenizer may be made of."""


def cached_folder(hub_id: str, revision: str | None = None) -> Path | None:
    """The cached folder of a model if its config and all its weights are in it.

    Args:
        hub_id: The repository.
        revision: Branch, tag or commit; None for the main branch.
    """
    from huggingface_hub import try_to_load_from_cache

    commit = known_commit(hub_id, revision) or revision
    cached = try_to_load_from_cache(hub_id, "config.json", revision=commit)
    if not isinstance(cached, str):
        return None
    folder = Path(cached).parent
    try:
        files, _ = layout(folder)
    except AssetError:
        return None
    return folder if all(file.is_file() for file in files) else None


def fetch_weights(hub_id: str, revision: str | None = None) -> Path:
    """Fetch a model's config and weights into the cache, at the commit of `model_commit`.

    Of safetensors and the older pickled files only those are fetched that are read. Call inside
    `model_explained`.

    Returns:
        Their folder; it holds what else of the repository was fetched before.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    commit = model_commit(hub_id, revision)
    try:
        return patiently(lambda: _fetched(hub_id, commit), f"model {hub_id}")
    except LocalEntryNotFoundError:  # the hub is not reached
        folder = cached_folder(hub_id, commit)
        if folder is None:
            raise
        return folder


def _fetched(hub_id: str, commit: str) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    folder = Path(hf_hub_download(hub_id, "config.json", revision=commit)).parent
    names = [name for pair in (SAFE, PICKLED) for name in pair]
    for name in names:
        try:
            (found,) = arrived("model", hub_id, commit, [name])
        except LocalEntryNotFoundError:  # which says nothing of what the repository has
            raise
        except EntryNotFoundError:
            if name == names[-1]:
                raise
            continue
        if found.suffix == ".json":
            arrived("model", hub_id, commit, [file.name for file in layout(folder)[0]])
        settings = ["generation_config.json", "*.py"]
        snapshot_download(hub_id, revision=commit, allow_patterns=settings)
        return folder
    raise AssertionError


def fetch_tokenizer(hub_id: str, commit: str) -> None:
    """Fetch what a tokenizer is made of into the cache; call inside `model_explained`.

    transformers takes a file that the hub does not give just now for one that is not there.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import OfflineModeIsEnabled

    last = "tokenizer_config.json"  # the others are here if it is
    if isinstance(try_to_load_from_cache(hub_id, last, revision=commit), str):
        return
    what = f"tokenizer of {hub_id}"
    try:
        files = patiently(lambda: HfApi().list_repo_files(hub_id, revision=commit), what)
    except OfflineModeIsEnabled:
        return
    names = {file for file in files if any(fnmatch(file, form) for form in TOKENIZER_FILES)}
    for some in (names - {last}, names & {last}):
        patiently(partial(arrived, "model", hub_id, commit, some), what)


def require_access(hub_id: str, revision: str | None = None) -> None:
    """Find out whether a model's files can be had, with one small request or none.

    Call inside `model_explained`.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if cached_folder(hub_id, revision) is None:
        place = hf_hub_url(hub_id, "config.json", revision=model_commit(hub_id, revision))
        patiently(lambda: get_hf_file_metadata(place), f"model {hub_id}")


@contextmanager
def model_explained(source: ModelSource, *, hub: bool = True) -> Iterator[None]:
    """Turn what the hub, transformers or the disk raise into one clear message.

    Args:
        source: The model.
        hub: Whether the hub may be asked within it, if the model is there.

    Raises:
        HubError: If the hub does not give what is asked for.
        AssetError: If the block raises anything but an error of this package. What is read is
            foreign, and transformers, torch and their readers have no common error for it.
    """
    try:
        yield
    except StreamlineError:
        raise
    except Exception as error:
        place = source.known_as
        shown = repr(source.name) if source.name == place else f"{source.name!r} ({place})"
        if hub and source.kind == "hub":
            wanted = Wanted(
                kind="model",
                repository=source.location,
                shown=f"Model {shown}",
                revision=known_commit(source.location, source.revision) or source.revision,
                instead=f"{accepted_names(source.name)} `smollm2-135m-instruct` needs no hub.",
            )
            why = explanation(error, wanted)
            if why is not None:
                raise HubError(why) from error
        raise AssetError(_explanation(error, shown)) from error


def _explanation(error: Exception, shown: str) -> str:
    """Why a model that is there cannot be loaded."""
    chain = list(causes(error))
    if any(isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" for e in chain):
        return (
            f"Model {shown} does not fit into memory. Read it layer by layer with --stream, or "
            "take --dtype bfloat16, a device with more memory, or --device-map auto."
        )
    reason = " ".join(str(error).split("\n\n")[0].split())[:300] or type(error).__name__
    if isinstance(error, (AssertionError, AttributeError, LookupError)):
        reason = f"{type(error).__name__}: {reason}"  # the text of these says too little
    if any("trust_remote_code" in str(e) for e in chain):
        return (
            f"Model {shown} brings Python code of its own (auto_map in its config.json), which is "
            "run with --trust-remote-code alone. Give the flag if you trust it."
        )
    return (
        f"Model {shown} could not be loaded: {reason.rstrip('.:')}. "
        f"Check that its files are whole and of a kind that transformers can load."
    )
