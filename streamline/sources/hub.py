"""The model hub: access to a model, its commit, and clear messages for what went wrong.

Example::

    with explained("llama2-7b", "meta-llama/Llama-2-7b-hf", hub=True):
        fetch_weights("meta-llama/Llama-2-7b-hf")
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamline.errors import AssetError, StreamlineError
from streamline.sources.folders import PICKLED, SAFE, layout
from streamline.sources.names import accepted_names

__all__ = [
    "cached_folder",
    "causes",
    "explained",
    "fetch_weights",
    "hub_errors",
    "revision",
]


@functools.cache
def revision(hub_id: str) -> str:
    """The commit at which this process reads a model: asked for once, the same for all its files.

    It is that of the cached files, or else of the main branch on the hub. transformers would find
    it too, but only after minutes of retries where there is no network, and with another message
    for each case. Call inside `explained`.
    """
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    cached = try_to_load_from_cache(hub_id, "config.json")
    if isinstance(cached, str):
        return Path(cached).parent.name
    commit = str(HfApi().model_info(hub_id, timeout=10).sha)
    try:  # by its branch, so that the cache knows later, without the hub, which commit it has
        return Path(hf_hub_download(hub_id, "config.json")).parent.name
    except EntryNotFoundError:
        return commit


def cached_folder(hub_id: str) -> Path | None:
    """The cached folder of a model if its config and all its weights are in it."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(cached, str):
        return None
    folder = Path(cached).parent
    try:
        files, _ = layout(folder)
    except AssetError:
        return None
    return folder if all(file.is_file() for file in files) else None


def fetch_weights(hub_id: str) -> Path:
    """Fetch a model's config and weights into the cache, at the commit of `revision`.

    Of safetensors and the older pickled files only those are fetched that are read. Call inside
    `explained`.

    Returns:
        Their folder; it holds what else of the repository was fetched before.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    commit = revision(hub_id)
    folder = Path(hf_hub_download(hub_id, "config.json", revision=commit)).parent
    names = [name for pair in (SAFE, PICKLED) for name in pair]
    for name in names:
        try:
            found = Path(hf_hub_download(hub_id, name, revision=commit))
        except EntryNotFoundError:
            if name == names[-1]:
                raise
            continue
        weights = [file.name for file in layout(folder)[0]] if found.suffix == ".json" else [name]
        settings = ["generation_config.json", "*.py"]
        snapshot_download(hub_id, revision=commit, allow_patterns=[*weights, *settings])
        return folder
    raise AssertionError


def hub_errors() -> tuple[type[Exception], ...]:
    """What reading from the hub may raise.

    Among them the base class of its HTTP library, which is found through the hub client's own
    errors: the client has changed libraries between versions.
    """
    from huggingface_hub.errors import HfHubHTTPError

    library = next(c for c in HfHubHTTPError.__bases__ if c is not OSError)
    assert issubclass(library, Exception)
    return (OSError, ValueError, library)


@contextmanager
def explained(given: str, location: str, *, hub: bool) -> Iterator[None]:
    """Turn what the hub, transformers or the disk raise into one clear message.

    Args:
        given: The model's name as the user wrote it.
        location: Hub id, folder or file of the name.
        hub: Whether the location is on the hub.

    Raises:
        AssetError: If the block raises anything but an error of this package. What is read is
            foreign, and transformers, torch and their readers have no common error for it.
    """
    try:
        yield
    except StreamlineError:
        raise
    except Exception as error:
        raise AssetError(_explanation(error, given, location, hub)) from error


def _explanation(error: Exception, given: str, location: str, hub: bool) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    chain = list(causes(error))
    shown = repr(given) if given == location else f"{given!r} ({location})"
    if any(isinstance(e, GatedRepoError) for e in chain):
        return (
            f"Model {shown} is gated. Accept its terms at https://huggingface.co/{location}, then "
            f"run `hf auth login` (or set HF_TOKEN)."
        )
    if any(isinstance(e, RepositoryNotFoundError) for e in chain):
        return (
            f"The hub has no model {location!r} that this machine may read. "
            f"{accepted_names(given)} A private one needs `hf auth login`."
        )
    if hub and any(_unreachable(e) for e in chain):
        return (
            f"Model {shown} is not in the local hub cache and the hub cannot be reached (or "
            f"HF_HUB_OFFLINE is set). {accepted_names(given)} `smollm2-135m-instruct` needs no hub."
        )
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


def _unreachable(error: BaseException) -> bool:
    """Whether an error means that the hub did not answer."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    *_, library = hub_errors()
    kinds = (OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError, library)
    return isinstance(error, kinds)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
