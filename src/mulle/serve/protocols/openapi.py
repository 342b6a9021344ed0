"""`/openapi.json` and `/docs`: made from the manifest being served, with a row that really works."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from typing import Any

from mulle.core.schema import ColumnType
from mulle.core.version import VERSION
from mulle.formats.bundle import ColumnInfo, Manifest
from mulle.serve.plane.dataplane import Serving

_TYPES: dict[ColumnType, dict[str, Any]] = {
    ColumnType.NUMBER: {"type": "number"},
    ColumnType.BOOLEAN: {"type": "boolean"},
    ColumnType.DATETIME: {"type": "string", "format": "date-time"},
    ColumnType.TEXT: {"type": "string"},
}
_MAX_SHOWN_CATEGORIES = 50

_STYLE = """:root{color-scheme:light dark;--line:#8884}body{font:16px/1.5 system-ui,sans-serif;
max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%;font-size:.92rem}
td,th{border-bottom:1px solid var(--line);padding:.35rem .6rem;text-align:left;overflow-wrap:break-word}
td:first-child{white-space:nowrap}
pre:empty{display:none}
textarea,pre{width:100%;box-sizing:border-box;
font:13px/1.45 ui-monospace,monospace;padding:.7rem;border:1px solid var(--line);border-radius:6px;overflow:auto}
textarea{min-height:12rem}
button{font:inherit;padding:.45rem 1.2rem;margin:.6rem 0;cursor:pointer}code{font-family:ui-monospace,monospace}"""
_SCRIPT = """const body=document.getElementById('body'),out=document.getElementById('answer');
document.getElementById('send').addEventListener('click',async()=>{out.textContent='…';
try{const r=await fetch('/predict',{method:'POST',headers:{'content-type':'application/json'},body:body.value});
out.textContent=r.status+'\\n'+JSON.stringify(await r.json(),null,2)}catch(e){out.textContent=String(e)}});"""


def _source_hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


CONTENT_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_source_hash(_STYLE)}'; script-src 'sha256-{_source_hash(_SCRIPT)}'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Only this page's own style and script run, and they talk to this server only."""


def render_openapi(serving: Serving, example: Mapping[str, Any]) -> bytes:
    """Return the OpenAPI 3.1 document of a deployment, as JSON."""
    manifest = serving.revisions[0].manifest
    row = _row_schema(manifest)
    error = {"$ref": "#/components/schemas/Error"}
    failures = {
        status: {"description": text, "content": {"application/json": {"schema": error}}}
        for status, text in (
            ("400", "Not JSON, or a header that cannot be read"),
            ("413", "Body or number of rows too large"),
            ("415", "Not application/json"),
            ("422", "A value does not fit its column"),
            ("503", "The prediction could not be logged, or the server is draining"),
        )
    }
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": f"{serving.deployment}: {manifest.model}",
            "version": str(serving.revisions[0].source.model_version),
            "description": f"Served by Mulle {VERSION}.",
        },
        "paths": {
            "/predict": {
                "post": {
                    "summary": "Predict one or many rows",
                    "parameters": [
                        _header("mulle-prediction-id", "The client's own id for the prediction"),
                        _header("mulle-revision", "Ask this revision and no other"),
                        _header("mulle-unit", "Who asks: one unit keeps its revision"),
                    ],
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {
                                "schema": {
                                    "oneOf": [
                                        {"type": "array", "items": row, "minItems": 1},
                                        {"type": "object", "properties": {"rows": {"type": "array", "items": row}}, "required": ["rows"]},
                                        {
                                            "type": "object",
                                            "properties": {
                                                "columns": {"type": "array", "items": {"type": "string"}},
                                                "features": {"type": "array", "items": {"type": "array"}},
                                            },
                                            "required": ["features"],
                                        },
                                        row,
                                    ]
                                },
                                "example": [dict(example)],
                            }
                        },
                    },
                    "responses": {
                        "200": {"description": "The predictions", "content": {"application/json": {"schema": _answer_schema(manifest)}}},
                        **failures,
                    },
                }
            },
            "/feedback": {
                "post": {
                    "summary": "Send what turned out to be true",
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": {"oneOf": [_FEEDBACK, {"type": "array", "items": _FEEDBACK}]}}},
                    },
                    "responses": {"200": {"description": "Kept, on disk"}, **failures},
                }
            },
            **{
                path: {"get": {"summary": text, "responses": {"200": {"description": "OK"}}}}
                for path, text in (
                    ("/health", "What is being served"),
                    ("/v2/health/live", "Whether the process lives"),
                    ("/v2/health/ready", "Whether requests are welcome"),
                    ("/metrics", "Prometheus metrics"),
                )
            },
        },
        "components": {
            "schemas": {
                "Error": {
                    "type": "object",
                    "properties": {
                        "error": {
                            "type": "object",
                            "properties": {key: {"type": "string"} for key in ("code", "what", "fix", "where")},
                            "required": ["code", "what", "fix", "where"],
                        }
                    },
                    "required": ["error"],
                }
            }
        },
    }
    return json.dumps(document, ensure_ascii=False).encode()


def render_docs(serving: Serving, example: Mapping[str, Any]) -> bytes:
    """Return the documentation page: self-contained, with a form that sends a real request."""
    served = serving.revisions[0]
    manifest = served.manifest
    rows = "".join(_column_row(column) for column in manifest.columns)
    answer = "value: the predicted number" if not manifest.classes else f"label and probabilities of {', '.join(manifest.classes)}"
    sample = json.dumps([dict(example)], ensure_ascii=False, indent=1)
    title = html.escape(f"{serving.deployment}: {manifest.model} version {served.source.model_version}")
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>
<p>Revision {served.number}, bundle <code>{served.source.bundle_digest[:12]}</code>, served by Mulle {VERSION}.
Machines read <a href="/openapi.json">/openapi.json</a>; see also <a href="/health">/health</a> and <a href="/metrics">/metrics</a>.</p>
<h2>POST /predict</h2>
<p>A list of rows by column name. Each answer holds {html.escape(answer)}, and a prediction id to send feedback for.</p>
<textarea id="body" spellcheck="false" aria-label="request body">
{html.escape(sample)}</textarea><br>
<button id="send">Send</button><pre id="answer" aria-live="polite"></pre>
<h2>Columns</h2><table><thead><tr><th>name<th>type<th>may be missing<th>seen in training</thead><tbody>{rows}</tbody></table>
<h2>POST /feedback</h2><pre>{html.escape(_feedback_example(manifest))}</pre>
<p>Errors have one shape: <code>{{"error": {{"code", "what", "fix", "where"}}}}</code>.</p>
<script>{_SCRIPT}</script></html>"""
    return page.encode()


_FEEDBACK: dict[str, Any] = {
    "type": "object",
    "properties": {
        "prediction_id": {"type": "string", "maxLength": 128},
        "label": {"type": ["string", "number", "boolean"]},
        "value": {"type": "number"},
        "reward": {"type": "number"},
    },
    "required": ["prediction_id"],
}


def _feedback_example(manifest: Manifest) -> str:
    truth = {"label": manifest.positive or manifest.classes[0]} if manifest.classes else {"value": 1.5}
    return json.dumps({"prediction_id": "…", **truth}, ensure_ascii=False)


def _row_schema(manifest: Manifest) -> dict[str, Any]:
    properties = {column.name: _column_schema(column) for column in manifest.columns}
    return {
        "type": "object",
        "properties": properties,
        "required": [column.name for column in manifest.columns if not column.nullable],
    }


def _column_schema(column: ColumnInfo) -> dict[str, Any]:
    schema = dict(_TYPES[column.type])
    if column.nullable:
        schema["type"] = [schema["type"], "null"]
    if column.categories is not None and len(column.categories) <= _MAX_SHOWN_CATEGORIES:
        schema["examples"] = list(column.categories)
    return schema


def _answer_schema(manifest: Manifest) -> dict[str, Any]:
    if manifest.classes:
        one: dict[str, Any] = {
            "label": {"type": "string", "enum": list(manifest.classes)},
            "probabilities": {"type": "object", "properties": {name: {"type": "number"} for name in manifest.classes}},
        }
    else:
        one = {"value": {"type": "number"}}
    return {
        "type": "object",
        "properties": {
            "predictions": {"type": "array", "items": {"type": "object", "properties": one}},
            "prediction_ids": {"type": "array", "items": {"type": "string"}},
            "model": {"type": "string"},
            "model_version": {"type": "integer"},
            "revision": {"type": "integer"},
        },
    }


def _header(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}


def _column_row(column: ColumnInfo) -> str:
    if column.categories is not None:
        shown = ", ".join(column.categories[:_MAX_SHOWN_CATEGORIES]) + ("…" if len(column.categories) > _MAX_SHOWN_CATEGORIES else "")
    elif column.minimum is not None or column.maximum is not None:
        shown = " to ".join("?" if end is None else f"{end:,g}" for end in (column.minimum, column.maximum))
    else:
        shown = ""
    cells = (column.name, column.type.value, "yes" if column.nullable else "no", shown)
    return "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells)
