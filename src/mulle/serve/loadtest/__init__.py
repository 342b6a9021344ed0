"""Asking a server as hard as wanted, and saying honestly what came back: generator, figures, knee and report of `mulle loadtest`."""
