"""Writes the reference pages that would rot if people wrote them: errors, settings with their JSON Schema, commands.

`python docs/generate.py` writes them; `python docs/generate.py --check` exits 1 if they are out of date.
Errors are read off the source by its syntax tree: every literal code, its sentence and its fix.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "mulle"
DOCS = ROOT / "docs"
NOTICE = "<!-- Written by docs/generate.py: edit the source, not this page. -->\n\n"
EXIT = {"SpecError": 2, "UserCodeError": 2, "CheckError": 1, "ConflictError": 2, "UnavailableError": 2, "MulleError": 2}
KIND = {**{name: name for name in EXIT}, "UnknownMethodError": "SpecError", "MetricUndefinedError": "SpecError", "_Problem": "SpecError"}
"""What is called to make an error -> its class."""
HTTP = frozenset({"problem", "_reject"})
"""What is called to refuse a request: status, code, sentence."""
SENTENCE = {"_Problem": 2}
MEANING = {
    "SpecError": "the input is wrong: fix it and try again",
    "UserCodeError": "a function of your project raised",
    "CheckError": "everything worked, and a check said no",
    "ConflictError": "somebody else was first: re-read and retry",
    "UnavailableError": "something outside does not answer: retry later",
    "MulleError": "a defect of Mulle",
}


@dataclass(frozen=True, slots=True)
class Raised:
    """One place that makes an error; `kind` is its class, or `HTTP` and the status it is answered with."""

    code: str
    kind: str
    what: str
    fix: str


def text_of(node: ast.expr | None) -> str:
    """Return a string expression as a reader would see it: what is filled in stands in angle brackets."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [
            v.value if isinstance(v, ast.Constant) else f"⟨{ast.unparse(v.value)}⟩"
            for v in node.values
            if isinstance(v, ast.Constant | ast.FormattedValue)
        ]
        return "".join(str(part) for part in parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.IfExp):
        return f"{text_of(node.body)} / {text_of(node.orelse)}"
    return "…" if node is not None else ""


def raised_errors() -> Iterator[Raised]:
    """Yield every error with a literal code in the source."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield from _errors_of(node)


def _errors_of(call: ast.Call) -> Iterator[Raised]:
    name = call.func.id if isinstance(call.func, ast.Name) else call.func.attr if isinstance(call.func, ast.Attribute) else ""
    at = 1 if name in HTTP else 0
    if (name not in KIND and name not in HTTP) or len(call.args) <= at:
        return
    kind = f"HTTP {text_of(call.args[0])}" if name in HTTP else KIND[name]
    sentence = SENTENCE.get(name, at + 1)
    fix = next((keyword.value for keyword in call.keywords if keyword.arg == "fix"), None)
    if fix is None and len(call.args) > sentence + 1:
        fix = call.args[sentence + 1]
    what = call.args[sentence] if len(call.args) > sentence else None
    for code in _codes(call.args[at]):
        yield Raised(code, kind, text_of(what), text_of(fix))


def _codes(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _codes(node.body)
        yield from _codes(node.orelse)


def errors_page() -> str:
    """Return the page of errors: one heading per code."""
    by_code: dict[str, list[Raised]] = {}
    for raised in raised_errors():
        by_code.setdefault(raised.code, []).append(raised)
    lines = [
        NOTICE + "# Errors",
        "",
        "Every error says *what* happened, the facts that were compared, *where*, and the *fix*. With `--json` the same fields come as",
        '`{"error": {"code", "what", "fix", "where", "facts"}}`. Codes are stable. Parts in ⟨brackets⟩ are filled in.',
        "",
        "| class | exit code | meaning |",
        "|---|---|---|",
        *(f"| `{kind}` | {EXIT[kind]} | {MEANING[kind]} |" for kind in EXIT),
        "",
        "Over HTTP the same codes come as 4xx and 503; those that only a server gives are marked with their status.",
        "",
    ]
    for code, places in sorted(by_code.items()):
        kinds = dict.fromkeys(place.kind for place in places)
        lines += [f"## `{code}`", "", "; ".join(f"`{kind}`, exit code {EXIT[kind]}" if kind in EXIT else kind for kind in kinds) + ".", ""]
        seen: set[tuple[str, str]] = set()
        for place in places:
            if (place.what, place.fix) not in seen:
                seen.add((place.what, place.fix))
                lines += [f"- {escape(place.what)}  ", f"  *Fix:* {escape(place.fix)}"]
        lines.append("")
    return "\n".join(lines)


def escape(text: str) -> str:
    """Return `text` for Markdown: angle brackets of placeholders such as <name> do not become HTML."""
    return text.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def settings_page() -> str:
    """Return the page of settings: every table and key of `mulle.toml`, from its JSON Schema."""
    import json

    from mulle.loop.settings.schema import render_schema

    schema = json.loads(render_schema())
    lines = [
        NOTICE + "# Settings (`mulle.toml`)",
        "",
        "Unknown keys are refused with the nearest valid one. Editors that read JSON Schema complete and check the file: put",
        "`#:schema ./mulle.schema.json` on its first line, and the [schema](../mulle.schema.json) beside it (`mulle init` does both).",
        "",
    ]
    lines += list(_table_lines("", schema, schema.get("$defs", {})))
    return "\n".join(lines)


def _table_lines(prefix: str, table: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    rows: list[str] = []
    inner: list[tuple[list[str], dict[str, Any]]] = []
    required = set(table.get("required", ()))
    for key, value in table.get("properties", {}).items():
        target = _resolved(value, definitions)
        if target.get("properties"):
            twin = next((i for i, (_, other) in enumerate(inner) if other is target), None)
            if twin is None:
                inner.append(([f"{prefix}{key}"], target))
            else:
                inner[twin][0].append(f"{prefix}{key}")
            continue
        extra = target.get("additionalProperties")
        if isinstance(extra, dict) and (filled := _resolved(cast("dict[str, Any]", extra), definitions)).get("properties"):
            inner.append(([f"{prefix}{key}.NAME"], filled))
            continue
        default = "required" if key in required else f"`{value['default']!r}`" if value.get("default") is not None else ""
        rows.append(f"| `{key}` | {_kind(value, definitions)} | {default} | {escape(value.get('description', ''))} |")
    if prefix:
        yield from (f"## `[{prefix.rstrip('.')}]`", "", escape(table.get("description", "")).split("Attributes:")[0].strip(), "")
    if rows:
        yield from ("| key | type | default | meaning |", "|---|---|---|---|", *rows, "")
    for names, target in inner:
        if len(names) > 1:
            yield from (
                f"## `[{prefix}METRIC]`",
                "",
                f"METRIC is one of {', '.join(f'`{name.removeprefix(prefix)}`' for name in names)}.",
                "",
            )
            yield from list(_table_lines(f"{prefix}METRIC.", target, definitions))[2:]
        else:
            yield from _table_lines(f"{names[0]}.", target, definitions)


def _resolved(value: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in value:
        return definitions[value["$ref"].rsplit("/", maxsplit=1)[-1]]
    for option in value.get("anyOf", ()):
        if "$ref" in option:
            return _resolved(option, definitions)
    return value


def _kind(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "enum" in value:
        return ", ".join(f"`{option}`" for option in value["enum"])
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_kind(o, definitions) for o in value["anyOf"] if o.get("type") != "null"))
    if value.get("type") == "array":
        return f"list of {_kind(value.get('items', {}), definitions)}"
    return str(value.get("type", "value"))


def commands_page() -> str:
    """Return the page of commands: the help of every one, as it is printed."""
    import os

    os.environ.update(COLUMNS="100", NO_COLOR="1", TERM="dumb")
    from importlib import import_module

    import typer

    from mulle.apps.cli.main import COMMANDS

    intro = "Every command takes `--help`; those that print results take `--json`. Exit codes: 0, 1 when a check said no, 2 for usage."
    lines = [NOTICE + "# Commands", "", intro, ""]
    for name, (module, text) in COMMANDS.items():
        command: Any = typer.main.get_command(import_module(f"mulle.apps.cli.{module}").app)
        lines += [f"## `mulle {name}`", "", text, ""]
        group = getattr(command, "commands", None)
        parts = [(f"mulle {name}", command)] if not group else [(f"mulle {name} {inner}", group[inner]) for inner in group]
        for title, part in parts:
            context = part.make_context(title, [], resilient_parsing=True)
            context.info_name = title
            lines += [*([f"### `{title}`", ""] if group else []), "```text", part.get_help(context).rstrip(), "```", ""]
    return "\n".join(line.rstrip() for line in "\n".join(lines).splitlines()) + "\n"


def schema_text() -> str:
    """Return the JSON Schema of `mulle.toml`."""
    from mulle.loop.settings.schema import render_schema

    return render_schema()


PAGES = {
    "reference/errors.md": errors_page,
    "reference/settings.md": settings_page,
    "reference/commands.md": commands_page,
    "mulle.schema.json": schema_text,
}


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` say which are out of date."""
    stale: list[str] = []
    for name, make in PAGES.items():
        path, text = DOCS / name, make().rstrip() + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in arguments:
                path.write_text(text, encoding="utf-8")
    if stale and "--check" in arguments:
        sys.stderr.write(f"out of date: {', '.join(stale)}; run `python docs/generate.py`\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
