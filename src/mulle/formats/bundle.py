"""The bundle: an immutable folder that can be served, named by the SHA-256 of its manifest.

    <bundle>/
      bundle.json        the manifest: schema, graph, outputs, and the digest and size of every file that counts
      model.onnx         one graph from raw columns to probabilities
      baseline.json      the drift baseline
      golden.json        requests which must reproduce before the first real one is served
      attestations/      beside the identity, not part of it: signature, run, SBOM, timings, variants

The reader trusts nothing: paths stay inside the folder, links are refused, sizes are checked before bytes, digests
before use. Nothing of a bundle is ever executed or unpickled.
"""

from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from mulle.core.canonical import canonical_json, digest_bytes, digest_file, is_digest
from mulle.core.errors import CheckError
from mulle.core.schema import Column, ColumnType, Schema
from mulle.formats.envelope import decode_document, read_limited

MANIFEST = "bundle.json"
GRAPH = "model.onnx"
BASELINE = "baseline.json"
GOLDEN = "golden.json"
ATTESTATIONS = "attestations"
FORMAT = "mulle.bundle"
VERSION = 1
MAX_MANIFEST_BYTES = 4 << 20
MAX_GRAPH_BYTES = 2 << 30


class ColumnInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One raw column a request carries.

    `categories`, `minimum` and `maximum` are what training saw: outside them a value is served and counted as an anomaly.
    """

    name: str
    type: ColumnType
    nullable: bool = True
    categories: tuple[str, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None


class GraphInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input tensor: which columns it stacks, side by side, shape (n, len(columns))."""

    name: str
    dtype: Literal["double", "float", "int64", "string", "bool"]
    columns: tuple[str, ...]


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The served graph: its inputs, and the output that holds the answer.

    `output` is (n, k) probabilities in the order of `classes`, or for regression (n, 1) predictions.
    """

    inputs: tuple[GraphInput, ...]
    output: str
    file: str = GRAPH


class FileInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of the bundle must be."""

    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The identity of a bundle."""

    format: Literal["mulle.bundle"] = FORMAT
    version: Literal[1] = VERSION
    model: str
    task: Literal["binary", "multiclass", "regression"]
    graph: Graph
    columns: tuple[ColumnInfo, ...]
    files: dict[str, FileInfo]
    classes: tuple[str, ...] = ()
    positive: str | None = None
    threshold: float = 0.5
    target: str | None = None
    entity: str | None = None

    @property
    def schema(self) -> Schema:
        """The raw columns as a schema."""
        return Schema(tuple(Column(c.name, c.type, c.nullable) for c in self.columns))

    def to_bytes(self) -> bytes:
        """Return the canonical bytes whose SHA-256 is the bundle's digest."""
        return canonical_json(msgspec.to_builtins(self, str_keys=True))

    def digest(self) -> str:
        """Return the bundle's digest."""
        return digest_bytes(self.to_bytes())


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the bundle in `folder` without touching the other files.

    Raises:
        SpecError: no manifest there.
        CheckError: not a manifest, a newer version, a file name that leaves the folder, or bytes that are not canonical.
    """
    path = folder / MANIFEST
    data = read_limited(path, max_bytes=MAX_MANIFEST_BYTES)
    manifest = decode_document(data, Manifest, name=FORMAT, version=VERSION, where=str(path))
    for name, info in manifest.files.items():
        _require_inside(name, str(path))
        if not is_digest(info.sha256):
            raise CheckError("bundle-tampered", f"the digest of {name!r} is malformed", fix="seal the bundle again", where=str(path))
    if manifest.graph.file not in manifest.files:
        raise CheckError("bundle-incomplete", "the manifest does not list its own graph", fix="seal the bundle again", where=str(path))
    if manifest.to_bytes() != data:
        raise CheckError(
            "bundle-tampered", "bundle.json is not in canonical form: it was edited by hand", fix="seal the bundle again", where=str(path)
        )
    return manifest


def verify_bundle(folder: Path, *, digest: str | None = None) -> Manifest:
    """Return the manifest after every listed file was found whole.

    Args:
        folder: The bundle.
        digest: The digest it must have, when known from elsewhere.

    Raises:
        CheckError: a file is missing, a link, of another size or with other bytes (named), or the digest differs.
    """
    manifest = read_manifest(folder)
    found = manifest.digest()
    if digest is not None and found != digest:
        raise CheckError(
            "bundle-digest",
            "this is another bundle than the one asked for",
            fix="fetch the bundle again from where it was sealed",
            where=str(folder),
            facts={"asked for": digest, "found": found},
        )
    for name, info in sorted(manifest.files.items()):
        path = folder / name
        if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise CheckError("bundle-incomplete", f"{name!r} is missing from the bundle", fix="fetch the bundle again", where=str(path))
        size = path.stat().st_size
        if size != info.size:
            raise CheckError(
                "bundle-tampered",
                f"{name!r} has another size than when it was sealed",
                fix="fetch the bundle again; it may be truncated",
                where=str(path),
                facts={"sealed": f"{info.size:,} bytes", "found": f"{size:,} bytes"},
            )
        actual = digest_file(path)
        if actual != info.sha256:
            raise CheckError(
                "bundle-tampered",
                f"{name!r} was changed after it was sealed",
                fix="fetch the bundle again, and find out who changed it",
                where=str(path),
                facts={"sealed": info.sha256, "found": actual},
            )
    return manifest


def _require_inside(name: str, where: str) -> None:
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\x00" in name or ":" in name:
        raise CheckError(
            "bundle-path", f"the manifest names {name[:80]!r}, which leaves the bundle", fix="do not use this bundle", where=where
        )
