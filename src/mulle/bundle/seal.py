"""Sealing: a folder becomes a bundle, named by the SHA-256 of its manifest and signed.

The folder is written beside its final place and renamed into it, so that a bundle either is there whole or is not
there. Sealing the same content twice gives the same digest and keeps the first folder.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mulle.core.canonical import digest_bytes
from mulle.core.errors import SpecError
from mulle.formats.bundle import (
    ATTESTATIONS,
    BASELINE,
    MANIFEST,
    BundleTask,
    ColumnInfo,
    FileInfo,
    Graph,
    Manifest,
    verify_bundle,
)
from mulle.formats.image_spec import ImageInput
from mulle.formats.signing import sign

SIGNATURE = "signature.json"


@dataclass(frozen=True, slots=True)
class SealedBundle:
    """A bundle on disk."""

    path: Path
    digest: str
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleContent:
    """What a bundle is made of: everything here, and only this, decides its digest.

    Attributes:
        baseline: The drift baseline document (`formats/baseline.py`); None where there is nothing to compare with: tensors.
        golden: The golden requests: `formats/golden.py` for columns, `formats/golden_tensors.py` for pictures and tensors.
        image: How a picture becomes the input, for models of pictures.
    """

    model_name: str
    task: BundleTask
    graph: bytes
    graph_info: Graph
    columns: Sequence[ColumnInfo]
    baseline: bytes | None
    golden: bytes
    classes: Sequence[str] = ()
    positive: str | None = None
    threshold: float = 0.5
    target: str | None = None
    entity: str | None = None
    image: ImageInput | None = None

    def files(self) -> dict[str, bytes]:
        """Return file name to bytes for every file the digest covers."""
        files = {self.graph_info.file: self.graph, self._bare().golden_file: self.golden}
        return files if self.baseline is None else {**files, BASELINE: self.baseline}

    def manifest(self) -> Manifest:
        """Return the manifest that names all of it."""
        files = {name: FileInfo(digest_bytes(data), len(data)) for name, data in sorted(self.files().items())}
        return msgspec.structs.replace(self._bare(), files=files)

    def _bare(self) -> Manifest:
        return Manifest(
            model=self.model_name,
            task=self.task,
            graph=self.graph_info,
            columns=tuple(self.columns),
            files={},
            classes=tuple(self.classes),
            positive=self.positive,
            threshold=self.threshold,
            target=self.target,
            entity=self.entity,
            image=self.image,
        )


def seal_bundle(root: Path, content: BundleContent, *, attestations: Mapping[str, bytes], private_key: bytes) -> SealedBundle:
    """Return the sealed bundle under `root/<digest>`.

    Args:
        root: The folder of bundles; made if it is not there.
        content: What the digest covers.
        attestations: File name (a plain name) to bytes, put beside: run, SBOM, timings. They do not change the digest.
        private_key: 32 bytes; signs the manifest.

    Raises:
        SpecError: an attestation's name is a path, or the folder cannot be written.
        CheckError: a bundle with this digest is there, and was changed.
    """
    for name in attestations:
        if Path(name).name != name or name in {"", ".", "..", SIGNATURE}:
            raise SpecError("bundle-attestation-name", f"an attestation cannot be called {name[:80]!r}", fix="give it a plain file name")
    manifest = content.manifest()
    data = manifest.to_bytes()
    digest = digest_bytes(data)
    final = root / digest
    if final.exists():
        verify_bundle(final, digest=digest)
        _add_attestations(final / ATTESTATIONS, attestations, root)
        return SealedBundle(final, digest, manifest)
    try:
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".sealing-", dir=root))
        try:
            signature = msgspec.json.encode(sign(data, private_key))
            _write_all(draft, {**content.files(), MANIFEST: data})
            _write_all(draft / ATTESTATIONS, {**attestations, SIGNATURE: signature})
            draft.chmod(0o755)
            _move(draft, final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise SpecError(
            "bundle-unwritable",
            f"the bundle cannot be written: {error.strerror}",
            fix="check the folder's permissions and the disk",
            where=str(root),
        ) from error
    return SealedBundle(final, digest, verify_bundle(final, digest=digest))


def _add_attestations(folder: Path, attestations: Mapping[str, bytes], root: Path) -> None:
    """Put what is new beside a bundle that is there; what was attested first is kept."""
    try:
        for name, data in attestations.items():
            target = folder / name
            if not target.exists():
                draft = folder / f".{name}.{os.getpid()}"
                draft.write_bytes(data)
                draft.rename(target)
    except OSError as error:
        raise SpecError(
            "bundle-unwritable",
            f"an attestation cannot be written beside the bundle: {error.strerror}",
            fix="check the folder's permissions and the disk",
            where=str(root),
        ) from error


def _move(draft: Path, final: Path) -> None:
    # Another process may have sealed the same content first: then theirs is the bundle, verified by the caller.
    try:
        draft.rename(final)
    except OSError:
        if not final.exists():
            raise


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        with (folder / name).open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
