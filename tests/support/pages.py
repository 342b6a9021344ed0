"""Pages of the documentation as sessions: their fenced blocks, and a folder in which one after the other is carried out.

A page may say at its top where it begins: `<!-- session: churn -->` stands in the finished project that the commands of
`OPENING` make; every other page in an empty folder. Pages that begin with those commands themselves are given what they
printed, so that the one run they share is paid for once.

In a `console` block a line that begins with `$ ` is a command (it goes on below while a quote is open or a backslash ends the
line), a command that ends with ` &` is a server that stays until
the page ends, `# exit code N` after a command is what it must return (0 otherwise). The lines below must occur in what is
printed, in this order; `…` stands for anything within a line, and alone for any lines.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

KINDS = frozenset({"console", "python", "toml", "json", "text"})
OPENING = ("mulle init churn shop", "cd shop", "git init --quiet && git add --all && git commit --quiet --message first", "mulle run")
NOT_RUN = ("make ", "pip install ", "git clone ")
"""Commands that would install, test or time this very copy: looked at by `test_reference.py`, not carried out."""

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>.*)$")
_TITLE = re.compile(r'title="([^"]+)"')
_SESSION = re.compile(r"<!-- session: (\w+) -->")
_EXIT = re.compile(r"\s+# exit code (\d+)$")
_PORT = "8080"
_COMMAND_S = 600
_READY_S = 120
_DRIVER = """
import contextlib, io, json, sys, traceback
names = {"__name__": "__page__"}
for line in sys.stdin:
    asked, out, problem = json.loads(line), io.StringIO(), ""
    sys.path[:1] = [asked["folder"]]
    __import__("os").chdir(asked["folder"])
    with contextlib.redirect_stdout(out):
        try:
            exec(compile(asked["code"], asked["name"], "exec"), names)
        except BaseException:
            problem = traceback.format_exc()
    print(json.dumps({"out": out.getvalue(), "problem": problem}), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: where it stands, its kind (`console`, `python` …), its title, its text."""

    line: int
    kind: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a console block, and what the page says it prints."""

    line: int
    text: str
    expected: tuple[str, ...]
    exit_code: int = 0
    stays: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A page: where it begins, and its blocks in order."""

    path: Path
    opening: str
    blocks: tuple[Block, ...]

    @property
    def commands(self) -> tuple[Command, ...]:
        """Every command of the page."""
        return tuple(command for block in self.blocks if block.kind == "console" for command in read_commands(block))


def read_page(path: Path) -> Page:
    """Return the page at `path`; an unclosed fence is an AssertionError."""
    text = path.read_text(encoding="utf-8")
    blocks: list[Block] = []
    fence: re.Match[str] | None = None
    start, lines = 0, list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        found = _FENCE.match(line)
        if fence is None:
            if found:
                fence, start, lines = found, number, []
        elif found and not found["info"].strip() and len(found["ticks"]) >= len(fence["ticks"]):
            kind, _, rest = fence["info"].strip().partition(" ")
            title = _TITLE.search(rest)
            blocks.append(Block(start, kind, title[1] if title else "", "\n".join(lines) + "\n"))
            fence = None
        else:
            lines.append(line.removeprefix(fence["indent"]))
    assert fence is None, f"{path.name}:{start}: the block is never closed"
    opening = _SESSION.search(text)
    return Page(path, opening[1] if opening else "empty", tuple(blocks))


def read_commands(block: Block) -> tuple[Command, ...]:
    """Return the commands of a console block; text before the first one is an AssertionError."""
    commands: list[Command] = []
    lines = block.text.splitlines()
    at = 0
    while at < len(lines):
        number, first = block.line + at + 1, lines[at]
        assert first.startswith("$ "), f"line {number}: a console block begins with `$ `, not {first!r}"
        text = first[2:]
        while text.endswith("\\") or text.count("'") % 2:
            at += 1
            text = f"{text}\n{lines[at]}"
        at += 1
        expected: list[str] = []
        while at < len(lines) and not lines[at].startswith("$ "):
            expected.append(lines[at])
            at += 1
        code = _EXIT.search(text)
        text = _EXIT.sub("", text)
        stays = text.endswith(" &")
        commands.append(Command(number, text.removesuffix(" &"), tuple(expected), int(code[1]) if code else 0, stays))
    return tuple(commands)


def missing_lines(expected: Sequence[str], printed: str) -> list[str]:
    """Return the expected lines that do not occur in `printed` in their order; blanks count as one, `…` for anything."""
    found = [" ".join(line.split()) for line in printed.splitlines()]
    at, missing = 0, list[str]()
    for line in expected:
        wanted = " ".join(line.split())
        if wanted in {"", "…"}:
            continue
        pattern = re.compile(
            ".*".join(re.escape(part.strip()) if part.strip() else "" for part in wanted.split("…")).replace(".*", r"\s*.*\s*")
        )
        hit = next((i for i in range(at, len(found)) if pattern.fullmatch(found[i])), None)
        if hit is None:
            missing.append(line)
        else:
            at = hit + 1
    return missing


def free_port() -> int:
    """Return a port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(slots=True)
class Recording:
    """What the commands of `OPENING` printed, and the folder they left."""

    folder: Path
    printed: list[str]


@dataclass(slots=True)
class Session:
    """A folder in which a page is carried out; the same path for every page, because projects know where they lie.

    Args:
        root: Holds the folder, the signing key, and what servers print.
    """

    root: Path
    port: int = field(default_factory=free_port)
    servers: list[tuple[Command, "subprocess.Popen[bytes]"]] = field(default_factory=list[tuple[Command, "subprocess.Popen[bytes]"]])
    python: "subprocess.Popen[str] | None" = None
    here: str = ""
    shell: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def folder(self) -> Path:
        """Where pages begin."""
        return self.root / "work"

    def begin(self, recording: Recording | None) -> None:
        """Start a page: in an empty folder, or in what was recorded."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if recording is None:
            self.folder.mkdir(parents=True)
            self.here = str(self.folder)
        else:
            shutil.copytree(recording.folder, self.folder, symlinks=True)
            self.here = str(self.folder / "shop")
        self.shell = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MULLE_", "PYTEST_", "COV_"))},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "MULLE_HOME": str(self.root / "key"),
            "NO_COLOR": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            **{
                f"GIT_{who}_{what}": value
                for who in ("AUTHOR", "COMMITTER")
                for what, value in (("NAME", "you"), ("EMAIL", "you@example.com"))
            },
        }

    def run(self, command: Command) -> tuple[int, str]:
        """Carry one command out; return its exit code and everything it printed, ports as the page has them."""
        text = self.with_port(command.text)
        if command.stays:
            return 0, self._start(command, text)
        keep = self.root / "shell.json"
        save = f"import json,os; json.dump([os.getcwd(), dict(os.environ)], open({str(keep)!r}, 'w'))"
        script = f"set -a\n{text}\ncode=$?\n{sys.executable} -c {_quoted(save)}\nexit $code\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.here,
            env=self.shell,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_COMMAND_S,
            check=False,
        )
        if keep.exists():
            self.here, shell = json.loads(keep.read_text(encoding="utf-8"))
            self.shell = {name: value for name, value in shell.items() if name not in {"_", "SHLVL", "code"}}
            keep.unlink()
        return done.returncode, self._without_port(done.stdout.decode("utf-8", "replace"))

    def run_python(self, block: Block) -> tuple[str, str]:
        """Run a block in the page's own interpreter; return what it printed, and its traceback if it raised."""
        if self.python is None:
            self.python = subprocess.Popen(
                [sys.executable, "-c", _DRIVER], cwd=self.here, env=self.shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        process = self.python
        assert process.stdin is not None
        assert process.stdout is not None
        asked = {"code": self.with_port(block.text), "folder": self.here, "name": f"<line {block.line}>"}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        return answer["out"], answer["problem"]

    def end(self) -> list[str]:
        """Stop what is still running; return what did not stop well."""
        problems: list[str] = []
        for command, process in reversed(self.servers):
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = -9
            if code not in {0, -signal.SIGTERM}:
                problems.append(f"line {command.line}: {command.text!r} stopped with {code}")
        self.servers.clear()
        if self.python is not None:
            self.python.communicate()
            self.python = None
        return problems

    def _start(self, command: Command, text: str) -> str:
        log = self.root / f"server-{len(self.servers)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {text}"],
                cwd=self.here,
                env=self.shell,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.servers.append((command, process))
        ends = time.monotonic() + _READY_S
        while True:
            printed = self._without_port(log.read_text(encoding="utf-8", errors="replace"))
            ready = not missing_lines(command.expected, printed) and "Ctrl-C" in printed
            if ready or process.poll() is not None or time.monotonic() > ends:
                return printed
            time.sleep(0.05)

    def with_port(self, text: str) -> str:
        """Return `text` with the port of this session in place of the one pages show."""
        text = re.sub(rf"\b{_PORT}\b", str(self.port), text)
        return re.sub(r"\bmulle serve\b(?!.*--port)", f"mulle serve --port {self.port}", text)

    def _without_port(self, text: str) -> str:
        return re.sub(rf"\b{self.port}\b", _PORT, text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
