"""The documentation builds, strictly: no broken link, no page outside the navigation, no warning."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    """What `make docs` does, into a folder of its own."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(ROOT / "mkdocs.yml"),
        "-d",
        str(tmp_path),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)

    assert 0 == built.returncode, built.stdout + built.stderr
    assert (tmp_path / "quickstart.ko" / "index.html").is_file()
