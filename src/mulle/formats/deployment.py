"""The deployment spec: which revisions a deployment serves, with what weights; signed, with a rising generation.

The data plane reads nothing else. An older generation than the one served is refused, so that a restored backup or a
slow writer can never move traffic backwards.
"""

from pathlib import Path
from typing import Literal

import msgspec

from mulle.core.canonical import canonical_json
from mulle.formats.envelope import decode_document, read_limited

FORMAT = "mulle.deployment"
VERSION = 1
MAX_SPEC_BYTES = 4 << 20


class Revision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One immutable served thing: a model version by its bundle."""

    number: int
    model: str
    model_version: int
    bundle_digest: str
    bundle_path: str
    run_id: str = ""


class Traffic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who answers: revision number to weight (whole per cent, summing to 100), and the salt of sticky assignment."""

    weights: dict[int, int]
    salt: str = ""
    authority: Literal["mulle", "mesh", "argo"] = "mulle"
    rollout_id: str = ""


class DeploymentSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one deployment serves from this generation on."""

    format: Literal["mulle.deployment"] = FORMAT
    version: Literal[1] = VERSION
    deployment: str
    environment: str
    generation: int
    revisions: tuple[Revision, ...]
    traffic: Traffic

    def to_bytes(self) -> bytes:
        """Return the canonical bytes that are signed."""
        return canonical_json(msgspec.to_builtins(self, str_keys=True))


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An Ed25519 signature over canonical bytes: the public key and the signature, both in hexadecimal."""

    key: str
    signature: str
    algorithm: Literal["ed25519"] = "ed25519"


class SignedSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A deployment spec as it lies on disk."""

    spec: DeploymentSpec
    signature: Signature
    format: Literal["mulle.signed-deployment"] = "mulle.signed-deployment"
    version: Literal[1] = 1


def read_signed_spec(path: Path) -> SignedSpec:
    """Return the signed spec at `path`; the signature is not yet verified (see `formats/signing.py`).

    Raises:
        SpecError: missing or too large.
        CheckError: not a signed spec, or a newer version.
    """
    data = read_limited(path, max_bytes=MAX_SPEC_BYTES)
    return decode_document(data, SignedSpec, name="mulle.signed-deployment", version=1, where=str(path))


def encode_signed_spec(signed: SignedSpec) -> bytes:
    """Return the bytes to write."""
    return msgspec.json.encode(signed)
