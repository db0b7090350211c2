"""A Chromium for tests that look at a page: the system's, driven by playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Milliseconds for anything that a page does; only one that hangs takes so long, on a busy machine.
LIMIT = 120_000
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def chromium() -> str | None:
    """The path of a Chromium, that of the variable ``CHROMIUM`` first; None if there is none."""
    named = os.environ.get("CHROMIUM")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        arguments = ["--no-sandbox", "--disable-gpu"]
        found = engine.chromium.launch(executable_path=chromium(), args=arguments)
        yield found
        found.close()


@contextmanager
def opened(on: Any, file: Path, **context: Any) -> Iterator[tuple[Any, list[str]]]:
    """A page whose figures are drawn, without a network, and what its console complained of."""
    with on.new_context(offline=True, **context) as around:
        around.set_default_timeout(LIMIT)
        page = around.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda sent: sent.url.startswith("http") and said.append(sent.url))
        page.goto(file.as_uri(), wait_until="commit")  # it is loaded when its figures are drawn
        page.wait_for_selector("body[data-ready]")
        yield page, said


def resized(page: Any, **size: int) -> None:
    """Give a page another size and wait for its figures, drawn anew where it becomes a phone's."""
    page.evaluate(
        "width => phone.matches !== width <= 640 && delete document.body.dataset.ready",
        size["width"],
    )
    page.set_viewport_size(size)
    page.wait_for_selector("body[data-ready]")
