"""Mulle's own workflow against the schema GitHub publishes for workflows."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

WORKFLOWS = Path(__file__).parents[2] / ".github" / "workflows"


@pytest.mark.skipif(not WORKFLOWS.is_dir(), reason="this copy has no workflows")
def test_every_workflow_is_valid(require_service):
    """Checked by the schema that comes with `check-jsonschema`, without a network."""
    require_service(find_spec("check_jsonschema") is not None, "check-jsonschema", "pip install check-jsonschema")
    files = sorted(map(str, WORKFLOWS.glob("*.yml")))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *files]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)

    assert files
    assert done.returncode == 0, done.stdout + done.stderr
