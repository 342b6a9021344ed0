"""The door to the metrics: the registry and its handles; names, labels and merge rules are in `mulle.formats.telemetry`."""

from mulle.serve.telemetry.folder import shared_folder
from mulle.serve.telemetry.process import watch_process
from mulle.serve.telemetry.registry import Cell, ClassCounter, HistogramCells, MetricsRegistry, Total
from mulle.serve.telemetry.render import CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Cell", "ClassCounter", "HistogramCells", "MetricsRegistry", "Total", "shared_folder", "watch_process"]
