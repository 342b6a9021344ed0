"""Mulle (물레, the spinning wheel): from data to a model in production, and round again.

A project needs this module only. Everything is imported on first use, so that `import mulle` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mulle.core.version import VERSION

if TYPE_CHECKING:
    import polars as pl

    from mulle.core.expect import Expect
    from mulle.core.expr import Expr, col, lit, when
    from mulle.core.project import Project
    from mulle.core.search_space import choice, integer, log_uniform, uniform
    from mulle.data.sources import read_csv, read_parquet, read_s3, read_sql

    Frame = pl.DataFrame

__version__ = VERSION
__all__ = [
    "Expect",
    "Expr",
    "Frame",
    "Project",
    "choice",
    "col",
    "integer",
    "lit",
    "log_uniform",
    "read_csv",
    "read_parquet",
    "read_s3",
    "read_sql",
    "uniform",
    "when",
]

_HOMES = {
    "Expect": "mulle.core.expect",
    "Expr": "mulle.core.expr",
    "Project": "mulle.core.project",
    "choice": "mulle.core.search_space",
    "col": "mulle.core.expr",
    "integer": "mulle.core.search_space",
    "lit": "mulle.core.expr",
    "log_uniform": "mulle.core.search_space",
    "read_csv": "mulle.data.sources",
    "read_parquet": "mulle.data.sources",
    "read_s3": "mulle.data.sources",
    "read_sql": "mulle.data.sources",
    "uniform": "mulle.core.search_space",
    "when": "mulle.core.expr",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name == "Frame":
        return import_module("polars").DataFrame
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mulle' has no attribute {name!r}")
    return getattr(import_module(home), name)
