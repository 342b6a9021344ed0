"""Whose signatures an environment accepts: those `trust` in `mulle.toml` names; locally this user's own key too."""

from typing import TYPE_CHECKING

from mulle.core.errors import SpecError
from mulle.formats.signing import key_path, load_or_create_key, public_key

if TYPE_CHECKING:
    from mulle.loop.settings import Settings

_LOCAL = "local"


def trusted_keys(settings: "Settings | None") -> tuple[str, ...]:
    """Return public keys as 64 hexadecimal digits.

    Args:
        settings: Of the environment; None for a bundle outside any project: this user's own key.

    Raises:
        SpecError: an environment other than `local` that trusts nobody.
    """
    named = () if settings is None else tuple(key.removeprefix("ed25519:") for key in settings.backends.trust)
    if settings is None or settings.environment == _LOCAL:
        own = public_key(load_or_create_key(key_path()))
        return tuple(dict.fromkeys((*named, own)))
    if not named:
        raise SpecError(
            "trust-empty",
            f"the environment {settings.environment!r} trusts no key, so nothing can be served in it",
            fix=f'add trust = ["ed25519:…"] under [env.{settings.environment}]; `mulle doctor` shows your key',
            where=str(settings.project_dir / "mulle.toml"),
        )
    return named
