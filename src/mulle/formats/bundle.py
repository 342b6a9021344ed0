"""The bundle: an immutable folder that can be served, named by the SHA-256 of its manifest.

    <bundle>/
      bundle.json        the manifest: schema, graph, outputs, and the digest and size of every file that counts
      model.onnx         one graph from raw columns to probabilities
      baseline.json      the drift baseline
      golden.json        requests which must reproduce before the first real one is served; of tensors and pictures: golden.bin
      attestations/      beside the identity, not part of it: signature, run, SBOM, timings, variants

The reader trusts nothing: paths stay inside the folder, links are refused, sizes are checked before bytes, digests
before use. Nothing of a bundle is ever executed or unpickled.
"""

from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias, cast

import msgspec

from mulle.core.canonical import canonical_json, digest_bytes, digest_file, is_digest
from mulle.core.errors import CheckError, SpecError
from mulle.core.schema import Column, ColumnType, Schema
from mulle.formats.envelope import decode_document, read_limited
from mulle.formats.image_spec import ImageInput

MANIFEST = "bundle.json"
GRAPH = "model.onnx"
BASELINE = "baseline.json"
GOLDEN = "golden.json"
GOLDEN_BINARY = "golden.bin"
ATTESTATIONS = "attestations"
FORMAT = "mulle.bundle"
VERSION = 1
MAX_MANIFEST_BYTES = 4 << 20
MAX_GRAPH_BYTES = 2 << 30

TensorType: TypeAlias = Literal["double", "float", "int64", "string", "bool", "uint8", "int8", "int32", "float16"]
AnswerTask: TypeAlias = Literal["binary", "multiclass", "regression"]
BundleTask: TypeAlias = Literal["binary", "multiclass", "regression", "tensor"]
Kind: TypeAlias = Literal["columns", "image", "tensors"]
_COLUMN_TYPES = ("double", "float", "int64", "string", "bool")


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
    """One input tensor.

    Attributes:
        name: In the graph.
        dtype: Of its elements.
        columns: The columns it stacks, side by side, shape (n, len(columns)); none where requests carry the tensor itself.
        shape: The dimensions after the batch axis, -1 where free; None for a stack of columns.
    """

    name: str
    dtype: TensorType
    columns: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None


class GraphOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One output tensor of a bundle that answers tensors; `shape` is that after the batch axis, -1 where free."""

    name: str
    dtype: TensorType
    shape: tuple[int, ...]


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The served graph: its inputs, and the output that holds the answer.

    Attributes:
        inputs: What it is fed.
        output: (n, k) probabilities in the order of `classes`, or for regression (n, 1) predictions; for `tensor` the first of `outputs`.
        file: In the bundle.
        outputs: For `tensor`: every output, answered as it is.
    """

    inputs: tuple[GraphInput, ...]
    output: str
    file: str = GRAPH
    outputs: tuple[GraphOutput, ...] = ()


class FileInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of the bundle must be."""

    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The identity of a bundle.

    Three kinds are served: raw columns to an answer, a picture to a class (`image` says how it becomes the one input), and
    tensors to tensors (`task` is `tensor`).
    """

    format: Literal["mulle.bundle"] = FORMAT
    version: Literal[1] = VERSION
    model: str
    task: BundleTask
    graph: Graph
    columns: tuple[ColumnInfo, ...]
    files: dict[str, FileInfo]
    classes: tuple[str, ...] = ()
    positive: str | None = None
    threshold: float = 0.5
    target: str | None = None
    entity: str | None = None
    image: ImageInput | None = None

    @property
    def kind(self) -> Kind:
        """What a request carries."""
        return "tensors" if self.task == "tensor" else "columns" if self.image is None else "image"

    @property
    def golden_file(self) -> str:
        """The file of golden requests: JSON for columns, binary for pictures and tensors."""
        return GOLDEN if self.kind == "columns" else GOLDEN_BINARY

    @property
    def schema(self) -> Schema:
        """The raw columns as a schema."""
        return Schema(tuple(Column(c.name, c.type, c.nullable) for c in self.columns))

    def require_answer(self) -> AnswerTask:
        """Return the task of a bundle whose answers are classes or numbers.

        Raises:
            SpecError: `bundle-tensor`: its answers are tensors, of which only the user knows the meaning.
        """
        if self.task == "tensor":
            raise SpecError(
                "bundle-tensor",
                f"{self.model!r} answers tensors: it is served, not evaluated or monitored by column",
                fix="use a bundle with classes or numbers here; tensors are served by /v2/models",
            )
        return self.task

    def to_bytes(self) -> bytes:
        """Return the canonical bytes whose SHA-256 is the bundle's digest."""
        document = cast("dict[str, Any]", msgspec.to_builtins(self, str_keys=True))
        # Fields of a later date are left out where they say nothing, so that the digests of earlier bundles stand.
        if self.image is None:
            del document["image"]
        if not self.graph.outputs:
            del document["graph"]["outputs"]
        for tensor in document["graph"]["inputs"]:
            if tensor["shape"] is None:
                del tensor["shape"]
        return canonical_json(document)

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
    _require_kind(manifest, str(path))
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


def _require_kind(manifest: Manifest, where: str) -> None:
    """Return if the parts of the manifest belong together: nothing later has to ask what an impossible mixture means."""
    inputs = manifest.graph.inputs
    if manifest.kind == "columns":
        problem = _columns_problem(manifest)
    elif manifest.columns or not inputs or any(tensor.columns or tensor.shape is None for tensor in inputs):
        problem = "an input without a shape, or with columns"
    else:
        problem = _tensors_problem(manifest) if manifest.image is None else _image_problem(manifest, manifest.image)
    if problem is not None:
        raise CheckError("bundle-inconsistent", f"the manifest contradicts itself: {problem}", fix="seal the bundle again", where=where)


def _columns_problem(manifest: Manifest) -> str | None:
    if manifest.graph.outputs or any(tensor.shape is not None for tensor in manifest.graph.inputs):
        return "columns and tensors are mixed"
    texts = {column.name: column.type is ColumnType.TEXT for column in manifest.columns}
    for tensor in manifest.graph.inputs:
        if not tensor.columns or not texts.keys() >= set(tensor.columns):
            return "an input stacks columns that are not there"
        if tensor.dtype not in _COLUMN_TYPES or any(texts[name] is not (tensor.dtype == "string") for name in tensor.columns):
            return "texts and numbers are mixed"
    return None


def _tensors_problem(manifest: Manifest) -> str | None:
    outputs = manifest.graph.outputs
    if manifest.classes or not outputs:
        return "a tensor bundle has outputs, and no classes"
    return None if manifest.graph.output == outputs[0].name else "the output is not the first of the outputs"


def _image_problem(manifest: Manifest, image: ImageInput) -> str | None:
    if (problem := image.find_problem()) is not None:
        return problem
    tensor, *more = manifest.graph.inputs
    if more or (tensor.shape, tensor.dtype) != (image.shape, image.tensor_type):
        return "a picture enters one input of its own shape"
    # A choice needs two classes.
    choice = manifest.task in {"binary", "multiclass"} and len(manifest.classes) > 1 and not manifest.graph.outputs
    return None if choice else "a picture is given one of at least two classes"


def _require_inside(name: str, where: str) -> None:
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\x00" in name or ":" in name:
        raise CheckError(
            "bundle-path", f"the manifest names {name[:80]!r}, which leaves the bundle", fix="do not use this bundle", where=where
        )
