"""`/openapi.json`: made from what is being served, with rows that really work. The page for people is in `docs_page.py`.

The first deployment is the one meant where a path names none; every deployment has its own paths too. Path segments are
percent-encoded here, because clients send a path as it stands in the document.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mulle.core.schema import ColumnType
from mulle.core.version import VERSION
from mulle.formats import telemetry as names
from mulle.formats.bundle import ColumnInfo, Manifest
from mulle.serve.plane.deployment import Serving
from mulle.serve.protocols.codec_json import ID_KEY
from mulle.serve.protocols.docs_page import CONTENT_POLICY, render_docs

__all__ = ["CONTENT_POLICY", "Api", "render_docs", "render_openapi"]
_MAX_SHOWN_CATEGORIES = 50
_PICTURES = ("image/jpeg", "image/png", "image/webp")
_NUMERIC: dict[str, Any] = {"type": "number"}
_TYPES: dict[ColumnType, tuple[dict[str, Any], ...]] = {
    ColumnType.NUMBER: (_NUMERIC,),
    ColumnType.BOOLEAN: ({"type": "boolean"}, {"enum": [0, 1]}),
    ColumnType.DATETIME: (
        {"type": "string", "format": "date-time", "description": "ISO 8601; UTC where no offset is given"},
        {"type": "number", "description": "seconds since 1970-01-01 UTC"},
    ),
    ColumnType.TEXT: ({"type": "string"},),
}
_REASONS = {
    "400": "Not JSON, or a header that cannot be read",
    "401": "No API key, or one that is not known",
    "403": "A key for something else, or a host or origin that may not ask",
    "404": "No such deployment or revision",
    "413": "Body, number of rows or picture too large",
    "415": "Another media type or encoding than the operation takes",
    "422": "A value does not fit",
    "429": "This key asks more often than it may; see Retry-After",
    "500": "The model could not answer; the server's log says why",
    "503": "Too much to do, or the prediction could not be logged; see Retry-After",
    "504": "The deadline passed before there was an answer",
}
_KEYED = frozenset({"401", "429"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What is true of all deployments.

    Attributes:
        keys: Whether requests need an API key.
        max_rows: Rows per request.
    """

    keys: bool = False
    max_rows: int = 10_000


def render_openapi(servings: Sequence[Serving], examples: Mapping[str, Mapping[str, Any]], api: Api | None = None) -> bytes:
    """Return the OpenAPI 3.1 document of a server, as JSON.

    Args:
        servings: What is being served; the first is meant where a path names none.
        examples: Deployment name to a row that works; may lack some.
        api: What is true of all of them.
    """
    document = _Document(api or Api())
    for i, serving in enumerate(servings):
        document.add(serving, examples.get(serving.deployment, {}), first=i == 0)
    return document.render(servings)


class _Document:
    def __init__(self, api: Api) -> None:
        self._api = api
        self._n_deployments = 0
        self._paths: dict[str, Any] = {}
        self._schemas: dict[str, Any] = {
            "Error": _ERROR,
            "InferenceError": _INFERENCE_ERROR,
            "Feedback": _FEEDBACK,
            "InferRequest": _INFER_REQUEST,
            "InferAnswer": _INFER_ANSWER,
        }

    def add(self, serving: Serving, example: Mapping[str, Any], *, first: bool) -> None:
        """Describe a deployment; its revision with most of the traffic speaks for all."""
        self._n_deployments += 1
        number = self._n_deployments
        manifest = serving.revisions[0].manifest
        tag = serving.deployment
        own = f"/deployments/{quote(serving.deployment, safe='')}"
        # Names of deployments may be of any script; names of components may not.
        self._schemas[f"Answer{number}"] = _answer_schema(manifest)
        if manifest.kind == "columns":
            self._schemas[f"Row{number}"] = _row_schema(manifest)
        operations: dict[str, Any] = {}
        if manifest.kind != "tensors":
            operations["/predict"] = self._predict(manifest, example, number, tag)
        if manifest.kind == "columns":
            operations["/invocations"] = self._invocations(manifest, example, tag)
        operations["/feedback"] = self._feedback(manifest, tag)
        for path, operation in operations.items():
            for prefix in ("", own) if first else (own,):
                self._paths[prefix + path] = {"post": operation | {"operationId": _id_of("post", prefix + path)}}
        self._add_inference(serving, manifest, example, tag)

    def render(self, servings: Sequence[Serving]) -> bytes:
        """Return the document's bytes."""
        for path, (text, kind, codes) in _PAGES.items():
            failures = self._failures(*codes) if "503" not in codes else {"503": {"description": "Not now", **_any_json()}}
            answer = {"description": "OK", "content": {kind: {"schema": {} if kind == _JSON else {"type": "string"}}}}
            operation = {"summary": text, "operationId": _id_of("get", path), "tags": ["server"], "responses": {"200": answer, **failures}}
            self._paths[path] = {"get": operation | ({"security": []} if path in _OPEN else {})}
        first = servings[0]
        served = first.revisions[0]
        document: dict[str, Any] = {
            "openapi": "3.1.0",
            "info": {
                "title": f"{first.deployment}: {served.manifest.model}",
                "version": str(served.source.model_version),
                "description": f"Served by Mulle {VERSION}. Answers say which revision gave them (`{names.REVISION_HEADER}`).",
            },
            "tags": [{"name": serving.deployment, "description": _told(serving)} for serving in servings] + [{"name": "server"}],
            "paths": dict(sorted(self._paths.items())),
            "components": {"schemas": self._schemas},
        }
        if self._api.keys:
            document["components"]["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An API key: `mulle keys create`"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            }
            document["security"] = [{"bearer": []}, {"header": []}]
        return json.dumps(document, ensure_ascii=False).encode()

    # ---- operations

    def _predict(self, manifest: Manifest, example: Mapping[str, Any], number: int, tag: str) -> dict[str, Any]:
        if manifest.kind == "image":
            summary = "Say what pictures show"
            file = {"type": "string", "contentMediaType": "image/jpeg", "description": "A picture"}
            form = {
                "type": "object",
                "properties": {"file": {"anyOf": [file, {"type": "array", "items": file, "minItems": 1}]}},
                "required": ["file"],
            }
            content: dict[str, Any] = {"multipart/form-data": {"schema": form}}
            content |= {kind: {"schema": {"type": "string", "contentMediaType": kind}} for kind in _PICTURES}
        else:
            summary = "Predict one or many rows"
            row = _ref(f"Row{number}")
            rows = {"type": "array", "items": row, "minItems": 1, "maxItems": self._api.max_rows}
            matrix = {
                "type": "object",
                "properties": {"columns": _COLUMN_NAMES, "features": self._matrix()},
                "required": ["features"],
                "additionalProperties": False,
            }
            envelope = {"type": "object", "properties": {"rows": rows}, "required": ["rows"], "additionalProperties": False}
            content = {_JSON: {"schema": {"anyOf": [rows, envelope, matrix, row]}, **_example([dict(example)] if example else None)}}
        return {
            "summary": summary,
            "tags": [tag],
            "parameters": _PARAMETERS,
            "requestBody": {"required": True, "content": content},
            "responses": {
                "200": _answered("The predictions, logged", _ref(f"Answer{number}")),
                **self._failures("400", "401", "403", "404", "413", "415", "422", "429", "500", "503", "504"),
            },
        }

    def _invocations(self, manifest: Manifest, example: Mapping[str, Any], tag: str) -> dict[str, Any]:
        # MLflow ignores columns it does not know, and so nothing is said here about what a row may not hold.
        row = {"type": "object", "properties": {column.name: _column_schema(column, dates=False) for column in manifest.columns}}
        rows = {"type": "array", "items": row, "minItems": 1, "maxItems": self._api.max_rows}
        columns = {"type": "object", "additionalProperties": {"type": "array", "maxItems": self._api.max_rows}}
        split = {
            "type": "object",
            "properties": {"columns": _COLUMN_NAMES, "index": {"type": "array"}, "data": self._matrix()},
            "required": ["data"],
        }
        forms = {
            "dataframe_split": split,
            "dataframe_records": rows,
            "instances": {"anyOf": [rows, self._matrix()]},
            "inputs": {"anyOf": [columns, rows, self._matrix()]},
        }
        schema = {
            "type": "object",
            "oneOf": [{"required": [form]} for form in forms],
            "properties": {**forms, "params": {"description": "Ignored, as MLflow ignores what a model does not declare"}},
        }
        shown = {"dataframe_records": [{name: value for name, value in example.items() if name in row["properties"]}]}
        keys = manifest.classes or ("prediction",)
        told = {"type": "object", "properties": {key: {"type": "number"} for key in keys}, "required": list(keys)}
        answer = {"type": "object", "properties": {"predictions": {"type": "array", "items": told}}, "required": ["predictions"]}
        return {
            "summary": "Predict in MLflow's formats",
            "tags": [tag],
            "parameters": _PARAMETERS,
            "requestBody": {
                "required": True,
                "content": {_JSON: {"schema": schema, **_example(shown if example else None)}, "text/csv": {"schema": {"type": "string"}}},
            },
            "responses": {
                "200": _answered("One object per row: class to probability", answer),
                **self._failures("400", "401", "403", "404", "413", "415", "429", "500", "503", "504"),
            },
        }

    def _feedback(self, manifest: Manifest, tag: str) -> dict[str, Any]:
        item = _ref("Feedback")
        many = {"type": "array", "items": item, "minItems": 1, "maxItems": self._api.max_rows}
        envelope = {"type": "object", "properties": {"feedback": many}, "required": ["feedback"], "additionalProperties": False}
        truth = {"label": manifest.positive or manifest.classes[0]} if manifest.classes else {"value": 1.5}
        counts = {"type": "object", "properties": {key: {"type": "integer", "minimum": 0} for key in ("accepted", "unknown")}}
        return {
            "summary": "Send what turned out to be true",
            "tags": [tag],
            "requestBody": {
                "required": True,
                "content": {_JSON: {"schema": {"anyOf": [item, many, envelope]}, "example": {ID_KEY: "order-17", **truth}}},
            },
            "responses": {
                "200": _answered("Kept, on disk", counts | {"required": ["accepted", "unknown"]}),
                **self._failures("400", "401", "403", "404", "413", "415", "422", "429", "503"),
            },
        }

    def _add_inference(self, serving: Serving, manifest: Manifest, example: Mapping[str, Any], tag: str) -> None:
        """Describe the paths of the Open Inference Protocol for one deployment."""
        own = f"/v2/models/{quote(serving.deployment, safe='')}"
        failures = self._failures("400", "401", "403", "404", "413", "415", "422", "429", "500", "503", "504", schema="InferenceError")
        infer = {
            "summary": "Infer, in the Open Inference Protocol",
            "description": "Tensors may follow the JSON as bytes: see the header `inference-header-content-length`.",
            "parameters": _PARAMETERS,
            "requestBody": {
                "required": True,
                "content": {
                    _JSON: {"schema": _ref("InferRequest"), **_example(_infer_example(manifest, example))},
                    "application/octet-stream": {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}},
                },
            },
            "responses": {"200": _answered("The outputs", _ref("InferAnswer")), **failures},
        }
        about = {
            "responses": {
                "200": {"description": "OK", **_any_json()},
                "404": failures["404"],
                "503": {"description": "Not now", **_any_json()},
            }
        }
        operations: dict[str, tuple[str, dict[str, Any]]] = {
            own: ("get", {"summary": "What a model takes and gives", **about}),
            f"{own}/ready": ("get", {"summary": "Ready?", **about}),
        }
        operations[f"{own}/infer"] = ("post", infer)
        for path, (method, operation) in operations.items():
            self._paths[path] = {method: {"tags": [tag], "operationId": _id_of(method, path), **operation}}

    def _failures(self, *codes: str, schema: str = "Error") -> dict[str, Any]:
        wanted = [code for code in codes if self._api.keys or code not in _KEYED]
        return {code: {"description": _REASONS[code], "content": {_JSON: {"schema": _ref(schema)}}} for code in wanted}

    def _matrix(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "array"}, "minItems": 1, "maxItems": self._api.max_rows}


_JSON = "application/json"
_OPEN = frozenset({"/health", "/v2/health/live", "/v2/health/ready"})
"""Asked by load balancers, which have no key; `/health` tells a stranger the status alone."""
_PAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "/docs": ("This, for people", "text/html", ("401",)),
    "/openapi.json": ("This document", _JSON, ("401",)),
    "/health": ("What is being served", _JSON, ("503",)),
    "/metrics": ("Prometheus metrics", "text/plain", ("401", "403")),
    "/v2": ("The server, in the Open Inference Protocol", _JSON, ("401",)),
    "/v2/health/live": ("Whether the process lives", _JSON, ()),
    "/v2/health/ready": ("Whether requests are welcome", _JSON, ("503",)),
}
_COLUMN_NAMES: dict[str, Any] = {
    "type": "array",
    "items": {"type": "string"},
    "description": "Order of the values; without it the model's own",
}
_ERROR: dict[str, Any] = {
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
_INFERENCE_ERROR: dict[str, Any] = {
    "anyOf": [{"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}, _ERROR]
}
_FEEDBACK: dict[str, Any] = {
    "type": "object",
    "properties": {
        ID_KEY: {"type": "string", "minLength": 1, "maxLength": 128, "pattern": r"^[!-~]+$"},
        "label": {"type": ["string", "number", "boolean"]},
        "value": {"type": "number"},
        "reward": {"type": "number"},
    },
    "required": [ID_KEY],
    "anyOf": [{"required": ["label"]}, {"required": ["value"]}, {"required": ["reward"]}],
    "additionalProperties": False,
}
_TENSOR: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string"},
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
    "required": ["name", "shape", "datatype"],
}
_INFER_REQUEST: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1},
        "outputs": {
            "type": "array",
            "items": {"type": "object", "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}}, "required": ["name"]},
        },
    },
    "required": ["inputs"],
}
_INFER_ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
    "required": ["model_name", "outputs"],
}


def _header(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}


_PARAMETERS = [
    _header(names.PREDICTION_ID_HEADER, "The client's own id for the prediction"),
    _header(names.REVISION_HEADER, "Ask this revision and no other"),
    _header(names.UNIT_HEADER, "Who asks: one unit keeps its revision"),
    _header("mulle-timeout-ms", "Milliseconds after which nobody wants the answer"),
]


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _any_json() -> dict[str, Any]:
    return {"content": {_JSON: {"schema": {}}}}


def _example(value: Any) -> dict[str, Any]:
    return {} if value is None else {"example": value}


def _id_of(method: str, path: str) -> str:
    return method + "".join(part.capitalize() for part in path.replace("%", "/").replace(".", "/").split("/"))


def _told(serving: Serving) -> str:
    served = serving.revisions[0]
    return f"{served.manifest.model} version {served.source.model_version}, revision {served.number}"


def _answered(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    told = {names.PREDICTION_ID_HEADER: "Id of the first row", names.REVISION_HEADER: "Which revision answered"}
    headers = {name: {"description": what, "schema": {"type": "string"}} for name, what in told.items()}
    return {"description": text, "headers": headers, "content": {_JSON: {"schema": schema}}}


def _row_schema(manifest: Manifest) -> dict[str, Any]:
    own = {column.name: _column_schema(column) for column in manifest.columns}
    beside: dict[str, Any] = {ID_KEY: {"type": "string", "description": "The client's own id for this row"}}
    if manifest.entity:
        beside[manifest.entity] = {
            "type": ["string", "number", "boolean", "null"],
            "description": "Whom the row is about: logged, not scored",
        }
    return {
        "type": "object",
        "properties": beside | own,
        "required": [column.name for column in manifest.columns if not column.nullable],
        "additionalProperties": False,
    }


def _column_schema(column: ColumnInfo, *, dates: bool = True) -> dict[str, Any]:
    kinds = [*_TYPES[column.type][: None if dates else 1], *([{"type": "null"}] if column.nullable else [])]
    schema: dict[str, Any] = dict(kinds[0]) if len(kinds) == 1 else {"anyOf": kinds}
    if column.categories is not None and len(column.categories) <= _MAX_SHOWN_CATEGORIES:
        schema["examples"] = list(column.categories)
    if column.minimum is not None or column.maximum is not None:
        schema["description"] = "Seen in training: " + " to ".join(
            "?" if end is None else f"{end:g}" for end in (column.minimum, column.maximum)
        )
    return schema


def _answer_schema(manifest: Manifest) -> dict[str, Any]:
    probability = {"type": "number", "minimum": -0.001, "maximum": 1.001}
    if manifest.kind == "image":
        one: dict[str, Any] = {
            "class": {"type": "string", "enum": list(manifest.classes)},
            "confidence": probability,
            "probabilities": {"type": "object", "additionalProperties": probability},
            "processing_time_ms": _NUMERIC,
        }
    elif manifest.classes:
        one = {
            "label": {"type": "string", "enum": list(manifest.classes)},
            "probabilities": {
                "type": "object",
                "properties": dict.fromkeys(manifest.classes, probability),
                "required": list(manifest.classes),
            },
        }
    else:
        one = {"value": _NUMERIC}
    return {
        "type": "object",
        "properties": {
            "predictions": {"type": "array", "items": {"type": "object", "properties": one, "required": list(one)}},
            "prediction_ids": {"type": "array", "items": {"type": "string"}},
            "model": {"type": "string"},
            "model_version": {"type": "integer"},
            "revision": {"type": "integer"},
        },
        "required": ["predictions", "prediction_ids", "model", "model_version", "revision"],
    }


def _infer_example(manifest: Manifest, example: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a request that works: the golden row as one tensor per column."""
    if manifest.kind != "columns" or not example:
        return None
    datatypes = {ColumnType.TEXT: "BYTES", ColumnType.BOOLEAN: "BOOL"}
    inputs = [
        {"name": c.name, "shape": [1], "datatype": datatypes.get(c.type, "FP64"), "data": [example[c.name]]}
        for c in manifest.columns
        if example.get(c.name) is not None
    ]
    return {"inputs": inputs} if inputs else None
