"""Where an environment's API keys come from: its `api_key`, or the project's own document."""

from pathlib import Path
from typing import TYPE_CHECKING

from mulle.core.errors import SpecError
from mulle.formats.api_keys import FILE_NAME, KeySource

if TYPE_CHECKING:
    from mulle.loop.settings import Settings

_FILE = "file://"


def key_source(settings: "Settings | None", state_dir: Path) -> KeySource:
    """Return where the server finds its keys.

    `[env.X] api_key` may be `file://path` (a document of `mulle keys`, or one key as plain text; watched while the server runs) or
    `env://NAME` (the same as text; read once). Without it: `keys.json` in the state folder.

    Args:
        settings: Of the chosen environment; None without a project.
        state_dir: The folder `.mulle`.

    Raises:
        SpecError: the variable is not set, or empty.
    """
    reference = None if settings is None else settings.backends.api_key
    if settings is None or reference is None:
        return KeySource(path=str(state_dir / FILE_NAME))
    if reference.startswith(_FILE):
        return KeySource(path=str(settings.project_dir / reference.removeprefix(_FILE)))
    from mulle.data.secrets import resolve_secret

    return KeySource(text=resolve_secret(reference, root=settings.project_dir))


def key_file(settings: "Settings | None", state_dir: Path) -> Path:
    """Return the document that `mulle keys` changes.

    Raises:
        SpecError: the environment's key is not in a file.
    """
    reference = None if settings is None else settings.backends.api_key
    if settings is not None and reference is not None and not reference.startswith(_FILE):
        raise SpecError(
            "keys-elsewhere",
            f"the keys of the environment {settings.environment!r} come from {reference!r}, not from a file",
            fix="change that variable, point [env.…] api_key at a file, or name one with --file",
            where=str(settings.project_dir / "mulle.toml"),
        )
    source = key_source(settings, state_dir)
    return Path(source.path or state_dir / FILE_NAME)
