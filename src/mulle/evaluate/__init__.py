"""Evaluation of the graph that would be served: metrics, slices, importance, latency, comparison, reports."""
