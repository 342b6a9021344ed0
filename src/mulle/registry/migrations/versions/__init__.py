"""One module per step, the first parent having none."""
