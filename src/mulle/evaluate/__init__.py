"""Evaluation of the graph that would be served: metrics with intervals, slices, importance, latency, comparison, report.

Open `evaluation.py` first. May import numpy, `formats`, `stats`, `release` and `core`; nothing here fits or loads a model:
the caller hands in a score function.
"""
