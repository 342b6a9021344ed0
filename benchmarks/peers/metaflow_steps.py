"""Metaflow: writes a flow of N empty steps; each runs in a process of its own, as Mulle's stages do."""

import sys
from pathlib import Path


def flow_of(n: int) -> str:
    """Return the source of a linear flow: start, n steps, end."""
    names = ["start", *(f"s{i}" for i in range(n)), "end"]
    lines = ["from metaflow import FlowSpec, step", "", "", "class Steps(FlowSpec):"]
    for i, name in enumerate(names):
        body = f"self.next(self.{names[i + 1]})" if name != "end" else "pass"
        lines += ["    @step", f"    def {name}(self):", f"        {body}", ""]
    return "\n".join([*lines, "", 'if __name__ == "__main__":', "    Steps()", ""])


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(flow_of(int(sys.argv[1])), encoding="utf-8")
