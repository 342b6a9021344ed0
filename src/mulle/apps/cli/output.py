"""What commands print: one way for tables, JSON and errors. Colour only on a terminal; `--json` is for machines."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from mulle.core.errors import MulleError


def print_json(value: Any) -> None:
    """Print `value` as JSON on standard output, keys in their own order, text readable."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def say(text: str = "") -> None:
    """Print a line for a person on standard output."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Print a line beside the result, on standard error, where it disturbs no pipe."""
    sys.stderr.write(text + "\n")


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; on a pipe: plain columns at full width, so that nothing is cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*header, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(table)


def report_error(error: MulleError, arguments: Sequence[str]) -> int:
    """Print an error as a person or (`--json`) a machine wants it, and return the exit code."""
    if "--json" in arguments:
        print_json({"error": error.to_dict()})
    elif sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        sys.stderr.write(str(error).replace("error[", "\x1b[31merror\x1b[0m[", 1) + "\n")
    else:
        sys.stderr.write(str(error) + "\n")
    if os.environ.get("MULLE_DEBUG"):
        import traceback

        traceback.print_exception(error)
    return error.exit_code
