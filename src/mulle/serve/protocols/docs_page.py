"""`/docs`: one page for people, made from what is being served. It needs nobody else: no script, style or picture from elsewhere."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from mulle.core.version import VERSION
from mulle.formats.bundle import ColumnInfo, Manifest
from mulle.serve.plane.deployment import Serving

_MAX_SHOWN_CATEGORIES = 50
_STYLE = """:root{color-scheme:light dark;--line:#8884}body{font:16px/1.5 system-ui,sans-serif;
max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%;font-size:.92rem}
td,th{border-bottom:1px solid var(--line);padding:.35rem .6rem;text-align:left;overflow-wrap:anywhere;vertical-align:top}
td:first-child{white-space:nowrap}
pre:empty{display:none}
textarea,pre,input[type=password]{width:100%;box-sizing:border-box;
font:13px/1.45 ui-monospace,monospace;padding:.7rem;border:1px solid var(--line);border-radius:6px;overflow:auto}
textarea{min-height:12rem}section{border-top:2px solid var(--line);margin-top:2.5rem}label{display:block;margin:.6rem 0 .2rem}
button{font:inherit;padding:.45rem 1.2rem;margin:.6rem 0;cursor:pointer}code{font-family:ui-monospace,monospace}"""
_SCRIPT = """const key=document.getElementById('key');
for(const form of document.querySelectorAll('form'))form.addEventListener('submit',async event=>{event.preventDefault();
const out=form.querySelector('pre'),file=form.querySelector('input[type=file]');out.textContent='…';
try{const headers={};if(key&&key.value)headers.authorization='Bearer '+key.value;let body;
if(file){body=new FormData();for(const one of file.files)body.append('file',one)}
else{headers['content-type']='application/json';body=form.querySelector('textarea').value}
const answer=await fetch(form.dataset.path,{method:'POST',headers,body}),text=await answer.text();
let shown=text;try{shown=JSON.stringify(JSON.parse(text),null,2)}catch{}
out.textContent=answer.status+'\\n'+shown}catch(problem){out.textContent=String(problem)}});"""


def _source_hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


CONTENT_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_source_hash(_STYLE)}'; script-src 'sha256-{_source_hash(_SCRIPT)}'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Only this page's own style and script run, and they talk to this server only."""


def render_docs(servings: Sequence[Serving], examples: Mapping[str, Mapping[str, Any]], *, keys: bool = False) -> bytes:
    """Return the page, UTF-8: what each deployment takes and gives, with a form that sends a real request.

    Args:
        servings: What is being served; the first is meant where a path names none.
        examples: Deployment name to a row that works; may lack some.
        keys: Whether requests need an API key: there is a field for it, which nothing keeps.
    """
    first = servings[0]
    title = html.escape(f"{first.deployment}: {first.revisions[0].manifest.model}")
    key = '<label for="key">API key (stays in this page)</label><input id="key" type="password" autocomplete="off">' if keys else ""
    sections = "".join(_section(serving, examples.get(serving.deployment, {}), first=i == 0) for i, serving in enumerate(servings))
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>
<p>Served by Mulle {VERSION}. Machines read <a href="/openapi.json">/openapi.json</a>;
see also <a href="/health">/health</a> and <a href="/metrics">/metrics</a>.</p>{key}{sections}
<section><h2>Errors</h2><p>Errors have one shape: <code>{{"error": {{"code", "what", "fix", "where"}}}}</code>.</p></section>
<script>{_SCRIPT}</script></html>"""
    return page.encode()


def _section(serving: Serving, example: Mapping[str, Any], *, first: bool) -> str:
    served = serving.revisions[0]
    manifest = served.manifest
    own = quote(serving.deployment, safe="")
    prefix = "" if first else f"/deployments/{own}"
    table = "".join(_path_row(*row) for row in _paths(manifest, own, first=first))
    return f"""<section><h2>{html.escape(serving.deployment)}: {html.escape(manifest.model)} version {served.source.model_version}</h2>
<p>Revision {served.number}, bundle <code>{served.source.bundle_digest[:12]}</code>.</p>
<table><thead><tr><th>method and path<th>what</thead><tbody>{table}</tbody></table>
{_ask(manifest, example, prefix, own)}{_columns(manifest)}
<h2>POST {prefix}/feedback</h2><pre>{html.escape(_feedback_example(manifest))}</pre></section>"""


def _paths(manifest: Manifest, own: str, *, first: bool) -> list[tuple[str, str]]:
    both = ("", f"/deployments/{own}") if first else (f"/deployments/{own}",)
    found: list[tuple[str, str]] = []
    if manifest.kind != "tensors":
        takes = "pictures: a form with the field file, or one as the body" if manifest.kind == "image" else "rows by name, or a matrix"
        found += [(f"POST {prefix}/predict", takes) for prefix in both]
    if manifest.kind == "columns":
        found += [(f"POST {prefix}/invocations", "MLflow's formats, JSON and CSV") for prefix in both]
    found += [(f"POST {prefix}/feedback", "labels, values or rewards that arrive later") for prefix in both]
    found.append((f"POST /v2/models/{own}/infer", "Open Inference Protocol, JSON and binary tensors; also by gRPC where it is switched on"))
    return found


def _ask(manifest: Manifest, example: Mapping[str, Any], prefix: str, own: str) -> str:
    if manifest.kind == "image":
        body = '<label>Pictures <input type="file" accept="image/*" multiple required></label>'
        path, told = f"{prefix}/predict", f"class and confidence, one of {', '.join(manifest.classes[:10])}"
        told += "…" if len(manifest.classes) > 10 else ""  # noqa: PLR2004 - as many as were shown
        intro = "One or more pictures."
    elif manifest.kind == "tensors":
        path, told, intro = f"/v2/models/{own}/infer", "the graph's outputs", "Tensors by name."
        inputs = [
            {"name": i.name, "shape": [1, *(max(n, 1) for n in i.shape or ())], "datatype": _DATATYPES[i.dtype], "data": []}
            for i in manifest.graph.inputs
        ]
        body = _text_area(json.dumps({"inputs": inputs}, ensure_ascii=False, indent=1))
    else:
        path, intro = f"{prefix}/predict", "A list of rows by column name."
        told = f"label and probabilities of {', '.join(manifest.classes)}" if manifest.classes else "value: the predicted number"
        body = _text_area(json.dumps([dict(example)], ensure_ascii=False, indent=1))
    return f"""<h2>POST {html.escape(path)}</h2>
<p>{intro} Each answer holds {html.escape(told)}, and a prediction id to send feedback for.</p>
<form data-path="{html.escape(path)}">{body}<br><button>Send</button><pre aria-live="polite"></pre></form>"""


_DATATYPES = {
    "double": "FP64",
    "float": "FP32",
    "float16": "FP16",
    "int64": "INT64",
    "int32": "INT32",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
    "string": "BYTES",
}


def _text_area(text: str) -> str:
    return f'<textarea spellcheck="false" aria-label="request body">\n{html.escape(text)}</textarea>'


def _columns(manifest: Manifest) -> str:
    if manifest.kind != "columns":
        return ""
    rows = "".join(_column_row(column) for column in manifest.columns)
    return f"<h2>Columns</h2><table><thead><tr><th>name<th>type<th>may be missing<th>seen in training</thead><tbody>{rows}</tbody></table>"


def _column_row(column: ColumnInfo) -> str:
    if column.categories is not None:
        shown = ", ".join(column.categories[:_MAX_SHOWN_CATEGORIES]) + ("…" if len(column.categories) > _MAX_SHOWN_CATEGORIES else "")
    elif column.minimum is not None or column.maximum is not None:
        shown = " to ".join("?" if end is None else f"{end:,g}" for end in (column.minimum, column.maximum))
    else:
        shown = ""
    cells = (column.name, column.type.value, "yes" if column.nullable else "no", shown)
    return "<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in cells)


def _path_row(path: str, text: str) -> str:
    return f"<tr><td><code>{html.escape(path)}</code><td>{html.escape(text)}"


def _feedback_example(manifest: Manifest) -> str:
    truth = {"label": manifest.positive or manifest.classes[0]} if manifest.classes else {"value": 1.5}
    return json.dumps({"prediction_id": "…", **truth}, ensure_ascii=False)
