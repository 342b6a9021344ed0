"""What a keeper does, and how its process is started; apart from the keeper itself, which nobody else has to load."""

import sys
from dataclasses import dataclass
from pathlib import Path

INTERVAL_S = 5.0
LINGER_S = 10.0
LEVEL = 1
"""Of zlib: as `formats.prediction_columns.LEVEL`, which a test holds equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperConfig:
    """What a keeper does.

    Attributes:
        root: The folder of logs, `.mulle/logs`.
        deployments: Whose logs; empty: all that are there.
        keep_days: Age at which encoded segments go; None: never by age.
        keep_bytes: What all segments together may take; None: no limit.
        sink: URL as `open_sink` takes it; None: nothing is shipped.
        interval_s: Seconds between looks.
        linger_s: Seconds the last look may take after the parent has gone.
        level: Of zlib.
    """

    root: Path
    deployments: tuple[str, ...] = ()
    keep_days: float | None = None
    keep_bytes: int | None = None
    sink: str | None = None
    interval_s: float = INTERVAL_S
    linger_s: float = LINGER_S
    level: int = LEVEL


def command(config: KeeperConfig) -> list[str]:
    """Return the command line of a keeper's process; start it with a pipe as standard input and keep that open."""
    words = [sys.executable, "-m", "mulle.serve.journal.keeper", "--root", str(config.root)]
    for name in config.deployments:
        words += ["--deployment", name]
    for option, value in (("--keep-days", config.keep_days), ("--keep-bytes", config.keep_bytes), ("--sink", config.sink)):
        if value is not None:
            words += [option, str(value)]
    return [*words, "--interval", str(config.interval_s), "--linger", str(config.linger_s), "--level", str(config.level)]
