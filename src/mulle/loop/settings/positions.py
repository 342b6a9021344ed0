"""Where each key of a TOML file stands: the standard reader forgets positions, and errors need them."""

from collections.abc import Mapping

Path = tuple[str, ...]
_CLOSING = {"[": "]", "{": "}"}


def key_lines(text: str) -> dict[Path, int]:
    """Return the line (from 1) of every table and key of a valid TOML text.

    Keys are paths from the root: `("gates", "roc_auc", "min")`. Keys inside inline tables are found too; elements of
    arrays are not, they stand where their array begins.

    Args:
        text: TOML that `tomllib` accepts; for anything else the lines found are those before the first oddity.
    """
    return _Scanner(text).run()


def line_of(lines: Mapping[Path, int], path: Path) -> int:
    """Return the line of `path`, or of the nearest table around it; 1 when nothing of it stands in the file."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return 1


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.lines: dict[Path, int] = {}

    def run(self) -> dict[Path, int]:
        table: Path = ()
        while True:
            self._blank()
            if self.at >= len(self.text):
                return self.lines
            before = self.at
            if self._peek() == "[":
                brackets = 2 if self.text.startswith("[[", self.at) else 1
                self._step(brackets)
                table = self._key()
                self.lines.setdefault(table, self.line)
                self._blank(newlines=False)
                self._step(brackets)
            else:
                self._assignment(table)
            if self.at == before:  # not TOML: stop instead of turning for ever
                return self.lines

    def _assignment(self, table: Path) -> None:
        line = self.line
        path = table + self._key()
        for end in range(len(table) + 1, len(path) + 1):
            self.lines.setdefault(path[:end], line)
        self._blank(newlines=False)
        if self._peek() == "=":
            self._step()
            self._blank(newlines=False)
            self._value(path)

    def _key(self) -> Path:
        parts: list[str] = []
        while True:
            self._blank(newlines=False)
            quote = self._peek()
            if quote in {'"', "'"}:
                parts.append(self._string())
            else:
                start = self.at
                while self._peek() and (self._peek().isalnum() or self._peek() in "_-"):
                    self._step()
                parts.append(self.text[start : self.at])
            self._blank(newlines=False)
            if self._peek() != ".":
                return tuple(parts)
            self._step()

    def _value(self, path: Path) -> None:
        first = self._peek()
        if first in {'"', "'"}:
            self._string()
        elif first in _CLOSING:
            self._step()
            while True:
                self._blank()
                if self._peek() == ",":
                    self._step()
                    continue
                if self._peek() in {_CLOSING[first], ""}:
                    self._step()
                    return
                before = self.at
                if first == "{":
                    self._assignment(path)
                else:
                    self._value(path)
                if self.at == before:
                    return
        else:
            while self._peek() and self._peek() not in ",]}#\n":
                self._step()

    def _string(self) -> str:
        quote = self._peek()
        fence = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self._step(len(fence))
        start = self.at
        while self.at < len(self.text) and not self.text.startswith(fence, self.at):
            self._step(2 if self._peek() == "\\" and quote == '"' else 1)
        content = self.text[start : self.at]
        self._step(len(fence))
        while len(fence) == 3 and self._peek() == quote:  # noqa: PLR2004 - up to two more quotes belong to the text
            self._step()
        if quote == '"' and "\\" in content:
            import tomllib

            try:
                return str(tomllib.loads(f"k = {fence}{content}{fence}")["k"])
            except tomllib.TOMLDecodeError:
                return content
        return content

    def _blank(self, *, newlines: bool = True) -> None:
        while (here := self._peek()) and (here in " \t\r" or (newlines and here in "\n#")):
            if here == "#":
                while self._peek() and self._peek() != "\n":
                    self._step()
            else:
                self._step()

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _step(self, n: int = 1) -> None:
        self.line += self.text.count("\n", self.at, self.at + n)
        self.at += n
