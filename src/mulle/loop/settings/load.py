"""Reading `mulle.toml`: every problem at once, each with its line, key, value and what to write instead."""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from mulle.core.errors import SpecError
from mulle.core.names import require_name
from mulle.loop.settings.model import EnvironmentTable, Settings
from mulle.loop.settings.positions import key_lines, line_of

FILE = "mulle.toml"
LOCAL = "local"
MAX_BYTES = 1 << 20
_SHOWN_PROBLEMS = 12
_SHOWN_VALUE = 60


@dataclass(frozen=True, slots=True)
class _Problem:
    code: str
    line: int
    what: str
    fix: str


def load_settings(project_dir: Path, environment: str = LOCAL) -> Settings:
    """Return the settings of the project in `project_dir`, seen from `environment`.

    Args:
        project_dir: The folder `mulle.toml` stands in.
        environment: `local`, or one of the file's `[env.NAME]` tables.

    Raises:
        SpecError: no file, not UTF-8, not TOML, above 1 MiB, unknown keys, values that do not fit, an unknown
            environment. All problems of the values are told at once.
    """
    path = project_dir / FILE
    text = _read(path)
    raw = _parse(text, path)
    lines = key_lines(text)
    problems = [
        _Problem("config-unknown-key", line_of(lines, (key,)), f"unknown key {key!r}", _nearest(key, _keys(Settings, ())))
        for key in ("project_dir", "environment")
        if key in raw
    ]
    document = {key: value for key, value in raw.items() if key not in {"project_dir", "environment"}}
    try:
        settings = Settings.model_validate({**document, "project_dir": project_dir.resolve(), "environment": environment})
    except ValidationError as error:
        problems += [_describe(dict(item), raw, lines) for item in error.errors(include_url=False, include_input=False)]
        raise _joined(problems, path) from None
    problems += _cross_checks(settings, lines)
    if problems:
        raise _joined(problems, path)
    if environment != LOCAL and environment not in settings.env:
        known = ", ".join(sorted({LOCAL, *settings.env}))
        raise SpecError(
            "config-environment",
            f"there is no environment {environment[:80]!r}",
            fix=f"use one of {known}, or add [env.{environment[:80]}]",
            where=str(path),
        )
    return settings


def _read(path: Path) -> str:
    if not path.is_file():
        raise SpecError(
            "config-missing",
            f"there is no {FILE} in {path.parent.resolve().name!r}",
            fix="go to the project's folder, name it with --project DIR, or make one: mulle init churn my-project",
            where=str(path.parent.resolve()),
        )
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SpecError(
                "config-too-large",
                f"{FILE} has {size:,} bytes; the limit is {MAX_BYTES:,}",
                fix="keep data out of the settings",
                where=str(path),
            )
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(
            "config-unreadable", f"{FILE} cannot be read: {error.strerror}", fix="check its permissions", where=str(path)
        ) from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SpecError("config-encoding", f"{FILE} is UTF-16", fix="save it as UTF-8", where=f"{path}:1")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SpecError(
            "config-encoding",
            f"{FILE} is not UTF-8: byte {data[error.start]:#04x} at position {error.start}",
            fix="save it as UTF-8",
            where=f"{path}:{line}",
        ) from error


_TOML_HELP = "texts stand in quotes, tables in [brackets], true and false are lower-case"


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        line = int(found.group(1)) if found else text.count("\n") + 1
        shown = text.splitlines()[line - 1].strip() if line <= len(text.splitlines()) else ""
        raise SpecError(
            "config-syntax",
            f"{FILE} is not TOML: {_said(error)}",
            fix=_toml_fix(str(error), shown),
            where=f"{path}:{line}",
            facts={"line": _short(shown)} if shown else None,
        ) from error
    except RecursionError as error:
        raise SpecError("config-syntax", f"{FILE} is nested too deeply", fix="keep tables flat", where=str(path)) from error


def _toml_fix(said: str, line: str) -> str:
    if "twice" in said or "overwrite" in said:
        return "keep one of them"
    if "key" in said and not line.isascii():
        return 'a name with other letters than a-z stands in quotes, such as "나이" = 1'
    return _TOML_HELP


def _said(error: tomllib.TOMLDecodeError) -> str:
    """Return what the parser says without its place, and tables as the file spells them rather than as tuples."""
    text = str(error).split(" (at", maxsplit=1)[0]
    twice = re.fullmatch(r"Cannot declare \((.*?),?\) twice", text)
    if twice is None:
        return text
    names = re.findall(r"'(.*?)'", twice.group(1))
    return f"the table [{'.'.join(names)}] stands twice"


def _describe(error: dict[str, Any], raw: Mapping[str, Any], lines: Mapping[tuple[str, ...], int]) -> _Problem:
    # pydantic's path may end in steps which are no keys of the file (indices, branches of a union): keep what is found.
    location = tuple(str(step) for step in error["loc"])
    kind = str(error["type"])
    name = ".".join(location)
    table, key = location[:-1], location[-1] if location else ""
    line = line_of(lines, location)
    if kind == "extra_forbidden":
        inside = f" in [{'.'.join(table)}]" if table else ""
        return _Problem("config-unknown-key", line, f"unknown key {key[:80]!r}{inside}", _nearest(key, _keys(Settings, table)))
    if kind == "missing":
        return _Problem(
            "config-missing-key",
            line,
            f"{name!r} is missing",
            f"add `{key} = …` to [{'.'.join(table)}]" if table else f"add a table [{key}]",
        )
    message = str(error["msg"]).removeprefix("Value error, ")
    value = _lookup(raw, location)
    if "password" in message:
        return _Problem("config-plain-secret", line, f"{name!r} holds a secret in plain text", message)
    if "by reference only" in message:
        return _Problem("config-plain-secret", line, f"{name!r} is not a reference", message)
    what = f"{name} = {_short(repr(value))} does not fit" if value is not None else f"{name!r} does not fit"
    return _Problem("config-value", line, what, message[:1].lower() + message[1:])


def _cross_checks(settings: Settings, lines: Mapping[tuple[str, ...], int]) -> list[_Problem]:
    """Return what no single value shows."""
    return [*_name_problems(settings, lines), *_gate_problems(settings, lines), *_value_problems(settings, lines)]


def _name_problems(settings: Settings, lines: Mapping[tuple[str, ...], int]) -> list[_Problem]:
    problems: list[_Problem] = []
    named = {
        ("project", "name"): settings.project.name,
        ("serving", "deployment"): settings.serving.deployment,
        ("data", "dataset"): settings.data.dataset,
    }
    for path, name in named.items():
        if name is None:
            continue
        try:
            require_name(name, ".".join(path))
        except SpecError as error:
            problems.append(
                _Problem("config-value", line_of(lines, path), f"{'.'.join(path)} = {_short(repr(name))} cannot be a name", error.fix)
            )
    problems += [
        _Problem("config-value", line_of(lines, ("env", name)), f"{name[:80]!r} cannot name an environment", "use a-z, 0-9, '-' and '_'")
        for name in settings.env
        if re.fullmatch(r"[a-z][a-z0-9_\-]{0,31}", name) is None
    ]
    return problems


def _gate_problems(settings: Settings, lines: Mapping[tuple[str, ...], int]) -> list[_Problem]:
    problems: list[_Problem] = []
    gates = settings.gates
    for name in sorted(gates.model_fields_set):
        gate: Any = getattr(gates, name)
        if gate is None:
            continue
        low, high = getattr(gate, "min", None), getattr(gate, "max", None)
        if low is not None and high is not None and low > high:
            problems.append(
                _Problem("config-value", line_of(lines, ("gates", name)), f"gates.{name}: min {low!r} is above max {high!r}", "swap them")
            )
        given = {key for key, value in gate.model_dump().items() if value is not None and key != "judge"}
        if not given:
            problems.append(
                _Problem(
                    "config-value",
                    line_of(lines, ("gates", name)),
                    f"gates.{name} checks nothing",
                    f"give it a bound, or remove [gates.{name}]",
                )
            )
    return problems


def _value_problems(settings: Settings, lines: Mapping[tuple[str, ...], int]) -> list[_Problem]:
    problems: list[_Problem] = []
    weights = settings.rollout.weights
    if not weights or list(weights) != sorted(set(weights)) or weights[-1] != 100:  # noqa: PLR2004 - per cent
        problems.append(
            _Problem(
                "config-value",
                line_of(lines, ("rollout", "weights")),
                f"rollout.weights = {list(weights)!r} does not rise to 100",
                "use [5, 25, 50, 100]",
            )
        )
    if settings.train.k_folds == 1:
        problems.append(
            _Problem(
                "config-value", line_of(lines, ("train", "k_folds")), "train.k_folds = 1 is no cross-validation", "use 2 or more, or 0"
            )
        )
    return problems


def _joined(problems: Sequence[_Problem], path: Path) -> SpecError:
    ordered = sorted(problems, key=lambda problem: problem.line)
    first = ordered[0]
    where = f"{path}:{first.line}"
    if len(ordered) == 1:
        return SpecError(first.code, first.what, fix=first.fix, where=where)
    facts: dict[str, str] = {}
    for number, problem in enumerate(ordered[:_SHOWN_PROBLEMS], start=1):
        facts[f"{number}. line {problem.line}"] = f"{problem.what}: {problem.fix}"
    if len(ordered) > _SHOWN_PROBLEMS:
        facts["…"] = f"and {len(ordered) - _SHOWN_PROBLEMS} more"
    codes = {problem.code for problem in ordered}
    code = codes.pop() if len(codes) == 1 else "config-invalid"
    return SpecError(code, f"{FILE} has {len(ordered)} problems", fix="mend the lines above", where=where, facts=facts)


def _nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known here: {', '.join(known)}" if known else "remove it"


def _keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the keys a table may have, walking `path` down from `model`."""
    current: type[BaseModel] = model
    for step in path:
        field = current.model_fields.get(step)
        if field is None:
            continue  # a name chosen by the user: [env.NAME]
        inner = _model_of(field.annotation)
        if inner is None:
            return []
        current = inner
    return [name for name in current.model_fields if name not in {"project_dir", "environment"}]


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in get_args(annotation):
        found = _model_of(part)
        if found is not None:
            return found
    return EnvironmentTable if annotation is dict else None


def _lookup(raw: Mapping[str, object], path: Sequence[str]) -> object:
    table: Mapping[str, object] = raw
    found: object = None
    for step in path:
        if step not in table:
            return found
        inner: object = table[step]
        found = inner
        table = cast("Mapping[str, object]", inner) if isinstance(inner, Mapping) else {}
    return found


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 1] + "…"
