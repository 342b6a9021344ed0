"""Every error Mulle raises on purpose, and what its user can do about it.

    MulleError                     never raised itself
    ├── SpecError                  the input is wrong: fix it and try again                  exit code 2
    │   └── UserCodeError          the user's own function raised: their file and line       exit code 2
    ├── CheckError                 everything worked, and a check said no                    exit code 1
    ├── ConflictError              somebody else was first: re-read and retry                exit code 2
    └── UnavailableError           something outside does not answer: retry later            exit code 2

An error says *what* happened (values shown with `repr`), the *facts* that were compared, *where* it is to be
mended and the *fix*: the next thing to type. `code` is stable, lower-case and documented in
`docs/reference/errors.md`. Transports map these classes to statuses; nothing here knows HTTP.
"""

from collections.abc import Mapping
from typing import ClassVar


class MulleError(Exception):
    """An error that explains itself.

    Args:
        code: Stable, lower-case, words joined by dashes: `config-unknown-key`.
        what: One sentence: what happened, values shown with `repr`.
        fix: What to do next, as a command or an edit.
        where: `file:line`, a URL path or a column; empty when there is no such place.
        facts: Label to text, printed one per line under the sentence: what was compared.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, code: str, what: str, *, fix: str, where: str = "", facts: Mapping[str, str] | None = None) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.fix = fix
        self.where = where
        self.facts: dict[str, str] = dict(facts or {})

    def __str__(self) -> str:
        """Return the whole error as it is printed on a terminal, without colour."""
        place = f" ({self.where})" if self.where else ""
        lines = [f"error[{self.code}]: {self.what}{place}"]
        width = max((len(label) for label in [*self.facts, "fix"]), default=0)
        lines += [f"  {label:<{width}}  {text}" for label, text in self.facts.items()]
        lines.append(f"  {'fix':<{width}}  {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the way between processes: keyword-only arguments do not by default."""
        return (_rebuild, (type(self), self.code, self.what, self.fix, self.where, self.facts))

    def to_dict(self) -> dict[str, object]:
        """Return the error for `--json` and for HTTP bodies: code, what, fix, where, facts."""
        return {"code": self.code, "what": self.what, "fix": self.fix, "where": self.where, "facts": self.facts}


class SpecError(MulleError):
    """The input is wrong: fix it and try again."""


class UserCodeError(SpecError):
    """A function of the user's project raised; `where` is their file and line."""


class CheckError(MulleError):
    """Everything worked, and a check (expectations, a gate, a monitor, a digest) said no."""

    exit_code = 1


class ConflictError(MulleError):
    """Somebody else was first: re-read the state and try again."""


class UnavailableError(MulleError):
    """Something outside this process does not answer: try again later."""


def _rebuild(kind: type[MulleError], code: str, what: str, fix: str, where: str, facts: dict[str, str]) -> MulleError:
    return kind(code, what, fix=fix, where=where, facts=facts)
