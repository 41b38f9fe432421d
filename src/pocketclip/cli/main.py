"""The command line: one short function a verb."""

import os
import sys
from typing import NoReturn

from rich.markup import escape

from pocketclip.cli import data, models, pictures  # their verbs, in this order
from pocketclip.cli.app import FIRST_RANK, app, console, errors
from pocketclip.errors import PocketCLIPError, Stopped

__all__ = ["app", "data", "main", "models", "pictures"]


def main() -> None:
    """Run the command line: a mistake is one line on stderr and exit code 2, a stopped training exit code 130."""
    for argument in sys.argv[1:]:
        if argument != argument.encode(errors="replace").decode():
            _fail(f"{argument!r}: not UTF-8, in which names are kept here; give it another name")
    try:
        app()
    except PocketCLIPError as error:
        if error.said:
            sys.exit(2)
        _fail(str(error))
    except OSError as error:  # no permission, no room, no such path: the machine's answer, not a fault of ours
        _fail(
            f"{error.filename or 'file system'}: {error.strerror or error}; choose another place, or make it writable"
        )
    except Stopped as stopped:
        console.print(escape(str(stopped)), highlight=False)
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    rank = "" if FIRST_RANK else f"rank {os.environ['RANK']}: "
    errors.print(f"[bold red]error:[/] {rank}{escape(message)}", highlight=False)
    sys.exit(2)
