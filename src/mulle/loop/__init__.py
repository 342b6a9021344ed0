"""The wheel itself: plan, run, release, watch; and the one place that chooses real adapters."""
