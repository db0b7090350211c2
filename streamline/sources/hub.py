"""The model hub: access to a model, its commit, and clear messages for what went wrong.

Example::

    with explained("llama2-7b", "meta-llama/Llama-2-7b-hf", hub=True):
        check_access("meta-llama/Llama-2-7b-hf")
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streamline.errors import AssetError
from streamline.sources.model_table import MODEL_TABLE

__all__ = ["accepted_names", "check_access", "commit", "explained", "hub_errors"]


def accepted_names(name: str) -> str:
    """What a model may be called, with the short names nearest to the one given."""
    near = difflib.get_close_matches(name.lower(), MODEL_TABLE, n=3)
    hint = f"Did you mean {', '.join(near)}? " if near else ""
    return (
        f"{hint}A model is a short name (`streamline-bench ls models`), a folder written by "
        f"`save_pretrained`, or a hub id such as facebook/opt-1.3b."
    )


def check_access(hub_id: str) -> None:
    """Ask the hub once for a model that is not in the local cache.

    transformers would find out too, but only after minutes of retries where there is no network,
    and with another message for each case. Call inside `explained`.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(hub_id, "config.json"), str):
        HfApi().model_info(hub_id, timeout=10)


def commit(hub_id: str) -> str:
    """The commit of a model's cached files, or else of its main branch on the hub.

    Call inside `explained`.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id, "config.json")
    if isinstance(cached, str):
        return Path(cached).parent.name
    return str(HfApi().model_info(hub_id).sha)


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
        AssetError: If the block raises one of `hub_errors` or finds damaged weights.
    """
    from safetensors import SafetensorError

    expected: tuple[type[Exception], ...] = (*hub_errors(), SafetensorError)
    try:
        yield
    except expected as error:
        raise AssetError(_explanation(error, given, location, hub)) from error


def _explanation(error: Exception, given: str, location: str, hub: bool) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    chain = list(_causes(error))
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
    reason = str(error).strip().splitlines()
    return (
        f"Model {shown} could not be loaded: {reason[0] if reason else type(error).__name__} "
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


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
