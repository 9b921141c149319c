"""How the command fails: one line that says what is wrong and what to do, exit code 1, a traceback only on demand."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

DEBUG_FLAG = "--debug"


class PlainFailures(TyperGroup):
    """The top command group. An error becomes one line on stderr; `--debug`, anywhere, adds the traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move `--debug` to the front, so that it works behind a command as well."""
        if DEBUG_FLAG in args:
            args = [DEBUG_FLAG, *(argument for argument in args if argument != DEBUG_FLAG)]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn what it raises into a line and an exit code."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
        # The last line of defence of a program: whatever comes is reported, and nothing goes on afterwards.
        except Exception as error:  # noqa: BLE001
            if hasattr(error, "format_message"):  # a wrong command line; typer reports those itself, with exit code 2
                raise
            if ctx.params.get("debug"):
                traceback.print_exc(file=sys.stderr)
            typer.echo(f"error: {describe(error)}", err=True)
            raise typer.Exit(1) from None


def describe(error: Exception) -> str:
    """Return one line about `error`: its own words if it was raised on purpose, what to do with it if it is a bug."""
    from refbfr_core.errors import RefbfrError

    text = " ".join(str(error).split())
    if isinstance(error, RefbfrError):
        return text
    if isinstance(error, OSError):
        return f"{text}. Check that the place exists and that you may use it."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # PyTorch's, without importing it
        return f"out of memory ({text}). Use fewer references or smaller pictures."
    name = type(error).__name__
    return f"unexpected {name}: {text}. This is a bug: run again with {DEBUG_FLAG} and report what it prints."


def note(text: str) -> None:
    """Tell the user something that is not part of the result; goes to stderr so that results can be piped."""
    typer.echo(f"note: {text}", err=True)


def warn(text: str) -> None:
    """Tell the user about a limit of what follows; goes to stderr."""
    typer.echo(f"warning: {text}", err=True)
