"""A bundle is used only when it is whole *and* signed by a key this environment trusts."""

from collections.abc import Collection
from pathlib import Path

import msgspec

from mulle.core.errors import CheckError, SpecError
from mulle.formats.bundle import ATTESTATIONS, Manifest, verify_bundle
from mulle.formats.deployment import Signature
from mulle.formats.envelope import read_limited
from mulle.formats.signing import require_signature

SIGNATURE = "signature.json"
MAX_SIGNATURE_BYTES = 64 << 10


def read_bundle_signature(folder: Path) -> Signature:
    """Return the signature that lies beside the manifest; it is not yet verified.

    Raises:
        CheckError: there is none, or it cannot be read as one.
    """
    path = folder / ATTESTATIONS / SIGNATURE
    try:
        return msgspec.json.decode(read_limited(path, max_bytes=MAX_SIGNATURE_BYTES), type=Signature)
    except (SpecError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckError(
            "signature-missing",
            "the bundle carries no readable signature",
            fix="seal the bundle again with `mulle run`, or fetch it again: a copy must include the folder 'attestations'",
            where=str(path),
        ) from error


def load_trusted_bundle(folder: Path, *, trusted: Collection[str], digest: str | None = None) -> Manifest:
    """Return the manifest after every byte and the signature were verified.

    Args:
        folder: The bundle.
        trusted: Public keys in hexadecimal, with or without the prefix `ed25519:`.
        digest: The digest it must have, when known from elsewhere.

    Raises:
        SpecError: there is no bundle.
        CheckError: incomplete, changed, another bundle, unsigned, or signed by somebody else.
    """
    manifest = verify_bundle(folder, digest=digest)
    require_signature(manifest.to_bytes(), read_bundle_signature(folder), trusted=trusted, what="the bundle", where=str(folder))
    return manifest
