"""The command line: one small file per command group, heavy imports inside the commands."""
