"""The command ``streamline-bench``: its verbs, and what becomes of errors.

An error that the package raises on purpose, and one of the disk or the network, ends as one message
and exit code 2. Anything else is an error of the program and keeps its traceback. Nothing heavy is
imported here or by the verbs' modules; each verb imports what it needs when it runs, so that
``--help`` answers at once.

Exit codes: 0 all done, 1 some cells failed, 2 bad arguments, 130 interrupted, 143 told to end.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from streamline import __version__
from streamline.cli import (
    cache,
    compare,
    evaluate,
    ls,
    merge,
    new_method,
    report,
    rm,
    run,
    stability,
    validate,
)
from streamline.cli.checkpoints import export, prune, push, verify
from streamline.cli.screen.show import show_error
from streamline.cli.screen.streams import lasting_streams
from streamline.distributed.team import LostProcess, follows, world_size
from streamline.errors import ConfigError, StreamlineError, reason, unknown_name
from streamline.run.commands import commanded

__all__ = ["app", "main"]

_VERBS = {
    "run": run,
    "ls": ls,
    "prune": prune,
    "export": export,
    "push": push,
    "verify": verify,
    "evaluate": evaluate,
    "stability": stability,
    "compare": compare,
    "merge": merge,
    "report": report,
    "validate": validate,
    "new-method": new_method,
    "rm": rm,
}
_KEPT = "what is finished is kept, the same command does the rest"
_EPILOG = """
Without a verb, `run` is meant. Examples:

    streamline-bench --suite embedded

    streamline-bench --models opt-1.3b --methods shortgpt,llm-streamline-layer --dry-run

    streamline-bench ls methods
"""


class _Verbs(TyperGroup):
    """The verbs; ``run`` is meant where one of its options is given instead of a verb."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments, with ``run`` before those that begin with an option of it."""
        own = {flag for option in self.get_params(ctx) for flag in option.opts}
        if args and args[0].startswith("-") and args[0] not in own:
            args = ["run", *args]
        elif args and args[0] not in (*own, *self.commands) and not ctx.resilient_parsing:
            raise unknown_name("verb", args[0], self.commands)
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete a verb or, before any verb, an option of ``run`` too."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("-"):
            found += self.commands["run"].shell_complete(ctx, incomplete)
        return found


app = typer.Typer(
    name="streamline-bench",
    cls=_Verbs,
    help="Prune layers of language models by many methods and compare them, question by question.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


#: What holds back the words on arguments that cannot be read, until they are.
_READING = ExitStack()


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """The verb, ended by an interrupt with one line."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        _READING.close()
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            if not _behind():
                show_error(f"interrupted; {_KEPT}")
            raise typer.Exit(130) from None

    return wrapped


for _name, _module in _VERBS.items():
    app.command(_name, epilog=_module.EPILOG)(_interruptible(_module.command))
for _command in cache.app.registered_commands:
    assert _command.callback is not None
    _command.callback = _interruptible(_command.callback)
app.add_typer(
    cache.app, name="cache", help="List or clear what is kept to save time.", epilog=cache.EPILOG
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"streamline-bench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere on the line).")
    ] = False,
) -> None:
    pass


class _Ended(BaseException):
    """The system or a scheduler told the process to end."""


@contextmanager
def _endable() -> Iterator[None]:
    """Within it, SIGTERM ends the work as an interrupt does, so that it takes its leave."""

    def end(*_: object) -> NoReturn:
        raise _Ended

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not in the main thread, which alone is told
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process.

    Of several processes that were launched together only the first one prints, but what others have
    to say when they are lost or never meet.

    Args:
        argv: Arguments without the program's name; None for those of the process.

    Raises:
        SystemExit: Always: 0 all done, 1 some cells failed, 2 bad arguments, 130 interrupted, 143
            told to end.
        StreamlineError, OSError: Instead of exit code 2, if ``--debug`` is among the arguments.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = _all_redone([argument for argument in arguments if argument != "--debug"])
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the libraries below, between our own
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # stacks of C++ where a process is lost
    with lasting_streams():
        sys.exit(_carried_out(arguments, debug))


@functools.cache
def _reader() -> Any:
    """The verbs with their options, read once for all command lines of a process."""
    return get_command(app)


def _carried_out(arguments: list[str], debug: bool) -> int | str | None:
    """Carry out a command line; its exit code."""
    usage = io.StringIO()
    try:
        with _second(usage), commanded(arguments), _endable(), _logged(debug):
            _reader()(args=arguments, prog_name="streamline-bench")
    except SystemExit as end:
        if end.code in (1, 2):
            _say(lambda: sys.stderr.write(usage.getvalue()))
        return end.code
    except _Ended:
        if not _behind():
            show_error(f"told to end; {_KEPT}")
        return 143
    except LostProcess as error:
        from streamline.distributed.meeting import unsaid

        if unsaid(str(error)):
            show_error(error)
        return 2
    except (StreamlineError, OSError) as error:
        if debug:
            raise
        found = error if isinstance(error, StreamlineError) else _explain(error, arguments)
        _say(lambda: show_error(found), error)
        return 2
    return 0


def _behind() -> bool:
    """Whether a first process beside this one speaks for it."""
    try:
        return follows()
    except ConfigError:  # who it is cannot be told
        return False


@contextmanager
def _second(usage: io.StringIO) -> Iterator[None]:
    """Within it, a process beside a first one shows no results, and no words on its arguments.

    Args:
        usage: Receives these words.
    """
    with ExitStack() as streams, _READING:
        if follows():
            streams.enter_context(redirect_stdout(io.StringIO()))
            _READING.enter_context(redirect_stderr(usage))
        yield


def _say(say: Callable[[], object], failure: Exception | None = None) -> None:
    """Say once for all processes why the command ends; none ends before that is done.

    Args:
        say: Says it.
        failure: What ends it, if it is an error.
    """
    behind = _behind()
    if not behind:
        say()
    if not _parted(failure) and behind:
        say()


def _parted(failure: Exception | None) -> bool:
    """Whether the other processes, if there are any, know how this one ends."""
    try:
        if world_size() == 1:
            return True
    except ConfigError:
        return False
    from streamline.distributed.meeting import parted

    return parted(failure)


def _all_redone(arguments: Sequence[str]) -> list[str]:
    """``--redo`` without a cell means all of them: an empty selector."""
    found = list(arguments)
    for index, argument in enumerate(found):
        rest = found[index + 1 : index + 2]
        if argument == "--redo" and (not rest or rest[0].startswith("--")):
            found[index] = "--redo="
    return found


@contextmanager
def _logged(debug: bool) -> Iterator[None]:
    """With ``--debug`` the log of this package on standard error, tracebacks of cells included."""
    if not debug:
        yield
        return
    log, handler = logging.getLogger("streamline"), logging.StreamHandler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _explain(error: OSError, arguments: Sequence[str]) -> str:
    """The system's message and the file; for a verb that works long what happens to the work."""
    verb = next(iter(arguments), "run")
    where = "--debug shows where it happened"
    if not verb.startswith("-") and verb not in ("run", "prune", "evaluate"):
        return f"{reason(error)} ({where})"
    return (
        f"{reason(error)}. What is finished is kept: mend this and give the same command again "
        f"({where})"
    )
