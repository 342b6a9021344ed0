"""Small real stage bodies: they count text, leave a trace of every call, and can be told to go wrong."""

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

from mulle.core.canonical import digest_bytes
from mulle.core.errors import CheckError
from mulle.loop.stage import StageContext, StageResult


def _called(context: StageContext) -> None:
    with (context.project_dir / "calls.txt").open("a", encoding="utf-8") as file:
        file.write(context.stage + "\n")


def _fault(context: StageContext) -> str:
    path = context.project_dir / f"fault.{context.stage}"
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _go_wrong(context: StageContext) -> None:
    fault = _fault(context)
    if fault:
        FAULTS[fault](context)


def _kill(context: StageContext) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _wait(context: StageContext) -> None:
    (context.project_dir / "waiting").write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(60)


def _full(context: StageContext) -> None:
    (context.output / "half.txt").write_text("half", encoding="utf-8")
    with Path("/dev/full").open("w", encoding="utf-8") as file:
        file.write("x")


def _read_only(context: StageContext) -> None:
    raise OSError(errno.EROFS, "Read-only file system", str(context.output))


def _raise(context: StageContext) -> None:
    sys.stdout.write("비밀이 아닌 말\n")
    raise KeyError("나이")


def _refuse(context: StageContext) -> None:
    raise CheckError("gate-failed", "the gate said no", fix="be better", where="mulle.toml:3", facts={"measured": "0.1"})


def _memory(context: StageContext) -> None:
    raise MemoryError


FAULTS = {
    "kill": _kill,
    "wait": _wait,
    "full": _full,
    "read-only": _read_only,
    "exit": lambda _context: sys.exit(3),
    "vanish": lambda _context: os._exit(4),
    "raise": _raise,
    "no": _refuse,
    "memory": _memory,
}


def snapshot(context: StageContext) -> StageResult:
    """Read the source file; its bytes are the dataset."""
    _called(context)
    _go_wrong(context)
    path = context.project_dir / "data.txt"
    data = path.read_bytes()
    (context.output / "data.txt").write_bytes(data)
    token = None if (context.project_dir / "no-token").exists() else f"{path.stat().st_mtime_ns}"
    return StageResult(
        {"data": digest_bytes(data.strip())}, {"n_bytes": len(data)}, [{"kind": "file", "location": "data.txt", "token": token}]
    )


def count(context: StageContext) -> StageResult:
    """Count the words of every input, and say what the stage was given."""
    _called(context)
    context.report("counting", 1, 2)
    _go_wrong(context)
    words = sum(len(path.read_text(encoding="utf-8").split()) for folder in context.inputs.values() for path in folder.glob("*.txt"))
    given = {"words": words, "parameters": context.parameters, "options": dict(context.options), "situation": context.situation}
    (context.output / "count.txt").write_text("word " * words, encoding="utf-8")
    (context.output / "given.json").write_text(json.dumps(given, ensure_ascii=False), encoding="utf-8")
    return StageResult({"count": digest_bytes(str(words).encode())}, {"words": words})


def heavy(context: StageContext) -> StageResult:
    """Touch two hundred mebibytes."""
    _called(context)
    block = bytearray(200 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    return StageResult({"n": str(len(block))})


def project_name(context: StageContext) -> StageResult:
    """Import the user's project."""
    _called(context)
    return StageResult({"name": context.load_project().name})


def noop(context: StageContext) -> StageResult:
    """Do nothing."""
    del context
    return StageResult({})
