"""Ed25519 over canonical bytes: keys, signing, verifying against the keys an environment trusts.

On a laptop the key is made on first use, outside the project, readable by its owner only: such a signature shows
*integrity* (nothing changed since), not authority. Elsewhere an environment lists the keys it trusts.
"""

import os
from collections.abc import Collection
from pathlib import Path

from mulle.core.errors import CheckError, SpecError
from mulle.formats.deployment import Signature

_KEY_BYTES = 32


def key_path() -> Path:
    """Return where this user's key lies: `$MULLE_HOME/keys/ed25519`, by default under the user's configuration folder."""
    home = os.environ.get("MULLE_HOME")
    base = Path(home) if home else Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "mulle"
    return base / "keys" / "ed25519"


def load_or_create_key(path: Path) -> bytes:
    """Return the 32 private bytes at `path`, made there (mode 0600) if there are none.

    Two processes that both find none agree: the file is linked into place, and the loser reads the winner's.

    Raises:
        SpecError: the file is not a key, or is readable by others.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, os.urandom(_KEY_BYTES))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    mode = path.stat().st_mode & 0o077
    data = path.read_bytes()
    if mode or len(data) != _KEY_BYTES:
        problem = "can be read by others" if mode else "is not a key"
        raise SpecError(
            "key-unusable", f"the signing key {problem}", fix=f"chmod 600 {path}, or remove it to make a new one", where=str(path)
        )
    return data


def public_key(private: bytes) -> str:
    """Return the public key of `private`, 64 hexadecimal digits."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def sign(message: bytes, private: bytes) -> Signature:
    """Return the signature of `message`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(private)
    return Signature(key=key.public_key().public_bytes_raw().hex(), signature=key.sign(message).hex())


def require_signature(message: bytes, signature: Signature, *, trusted: Collection[str], what: str, where: str) -> None:
    """Return if `signature` is valid for `message` and its key is among `trusted`.

    Args:
        message: The canonical bytes.
        signature: What came beside them.
        trusted: Public keys in hexadecimal, with or without the prefix `ed25519:`.
        what: What is signed, for the error: `the bundle`.
        where: The file, for the error.

    Raises:
        CheckError: a key nobody here trusts, or a signature that does not fit.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if signature.key not in {key.removeprefix("ed25519:") for key in trusted}:
        raise CheckError(
            "signature-untrusted",
            f"{what} is signed by a key this environment does not trust",
            fix="add the key to `trust` of this environment in mulle.toml, if you know whose it is",
            where=where,
            facts={"signed by": f"ed25519:{signature.key}"},
        )
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key)).verify(bytes.fromhex(signature.signature), message)
    except (InvalidSignature, ValueError) as error:
        raise CheckError(
            "signature-invalid",
            f"the signature of {what} does not fit its bytes",
            fix="do not use it; fetch it again from where it was made",
            where=where,
        ) from error
