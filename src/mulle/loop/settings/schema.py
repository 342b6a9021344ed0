"""The JSON Schema of `mulle.toml`, for editors: `#:schema mulle.schema.json` on the file's first line switches it on."""

import json
from pathlib import Path
from typing import Any, cast

from mulle.loop.paths import write_atomic

SCHEMA_FILE = "mulle.schema.json"


def render_schema() -> str:
    """Return the JSON Schema of `mulle.toml` as text that ends with a newline; the same settings give the same text."""
    from mulle.loop.settings.model import Document

    schema = Document.model_json_schema(mode="validation")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "mulle.toml"
    _accept_true(schema)
    return json.dumps(schema, ensure_ascii=False, indent=2, sort_keys=True) + "\n"


def write_schema(folder: Path) -> Path:
    """Write the schema into `folder` and return its path."""
    path = folder / SCHEMA_FILE
    write_atomic(path, render_schema().encode("utf-8"))
    return path


def _accept_true(schema: dict[str, Any]) -> None:
    """Say what a validator accepts and the generator cannot see: `no_worse_than_champion = true`."""
    gate = cast("dict[str, Any]", schema["$defs"]["MetricGate"]["properties"]["no_worse_than_champion"])
    gate["anyOf"].insert(0, {"type": "boolean"})
    gate.pop("$comment", None)
