"""The INT8 variant of a whole project: kept beside the bundle where the metrics hold, refused with its number where not."""

import json

import pytest

from support.projects import Sample

pytestmark = pytest.mark.slow


def variant_of(project):
    """Return what the newest bundle says of its variant, and the papers beside it."""
    folder = max((project.folder / ".mulle" / "bundles").iterdir(), key=lambda path: path.stat().st_mtime_ns) / "attestations"
    return json.loads((folder / "variants.json").read_bytes()), {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("gap", "is_kept"),
    [
        pytest.param(0.2, True, id="every metric stays within the gap: kept as an attestation"),
        pytest.param(1e-5, False, id="wide enough for the graph, too narrow for eight bits: refused"),
    ],
)
def test_a_variant_is_kept_only_where_the_metrics_hold(tmp_path, capsys, own_key_folder, gap, is_kept):
    """The served graph stays float32 either way; the variant is a proposal with its evidence."""
    project = Sample(estimator="net", settings={"export": {"max_metric_gap": gap, "max_disagreeing_share": 1.0}}).write(tmp_path / "net")
    answer = project.call(capsys, "run", "--json")
    assert answer.code == 0, answer.out
    variant, papers = variant_of(project)

    assert is_kept == ("model.int8.onnx" in papers)
    assert is_kept == ("sha256" in variant)
    assert ("refused" in variant["reason"]) != is_kept
