"""The prediction log, whole: writing (`prediction_writer`), reading (`prediction_reader`), and what both agree on."""

from mulle.formats.prediction_block import ID_DIGITS, LoggedColumn, PredictionBatch, Source, format_id
from mulle.formats.prediction_frames import Outcome, OutcomeCounts
from mulle.formats.prediction_policy import LogPolicy, is_sampled
from mulle.formats.prediction_reader import find_prediction, known_prefixes, read_predictions, was_sampled_out
from mulle.formats.prediction_table import Gaps, Prediction, PredictionTable
from mulle.formats.prediction_writer import LogWriter

__all__ = [
    "ID_DIGITS",
    "Gaps",
    "LogPolicy",
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
    "is_sampled",
    "known_prefixes",
    "read_predictions",
    "was_sampled_out",
]
