"""Refuse a lock file that would not work elsewhere: it must pin every line and name no place."""

import re
import sys
from pathlib import Path

PINNED = re.compile(r"[A-Za-z0-9._\-\[\]]+==[^\s;]+( ; .*)?")


def problems(text: str) -> list[str]:
    """Return the lines that are not exact pins or comments."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return [line for line in lines if PINNED.fullmatch(line) is None or "://" in line]


if __name__ == "__main__":
    bad = problems((Path(__file__).parent / "lock.txt").read_text(encoding="utf-8"))
    sys.exit("\n".join(["the lock file has lines that are not exact pins:", *bad]) if bad else 0)
