"""The guide tells every metric with its labels, and none that is not there."""

import re
from pathlib import Path

from mulle.formats.telemetry import METRICS

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "guides" / "observability.md"


def test_the_guide_lists_every_metric_with_its_labels():
    """Tables and source agree, name by name and label by label."""
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]*)\|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    told = {name: labels.strip() for cell, labels in rows for name in re.findall(r"`([^`]+)`", cell)}
    expected = {spec.name: ", ".join((*spec.labels, "worker") if spec.merge == "worker" else spec.labels) for spec in METRICS.values()}

    assert expected == told
