"""What an operator tunes without touching code: `mulle.toml`, read into frozen typed values."""

from mulle.loop.settings.base import duration_s
from mulle.loop.settings.load import FILE, LOCAL, load_settings
from mulle.loop.settings.model import Document, EnvironmentTable, Settings

__all__ = ["FILE", "LOCAL", "Document", "EnvironmentTable", "Settings", "duration_s", "load_settings"]
