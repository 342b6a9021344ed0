"""What runs the stages: `local` here; others beside it."""
