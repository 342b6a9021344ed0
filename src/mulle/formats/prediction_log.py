"""The prediction log, whole: writing (`prediction_writer`), reading (`prediction_reader`), the block they share (`prediction_block`)."""

from mulle.formats.prediction_block import ID_DIGITS, LoggedColumn, PredictionBatch, Source, format_id
from mulle.formats.prediction_reader import Gaps, Prediction, PredictionTable, find_prediction, known_prefixes, read_predictions
from mulle.formats.prediction_writer import LogWriter, Outcome, OutcomeCounts

__all__ = [
    "ID_DIGITS",
    "Gaps",
    "LogWriter",
    "LoggedColumn",
    "Outcome",
    "OutcomeCounts",
    "Prediction",
    "PredictionBatch",
    "PredictionTable",
    "Source",
    "find_prediction",
    "format_id",
    "known_prefixes",
    "read_predictions",
]
