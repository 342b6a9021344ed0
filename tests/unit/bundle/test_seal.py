"""Sealing and verifying bundles: identity, tampering, hostile manifests, races."""

import json
import shutil

import pytest

from mulle.bundle.seal import BundleContent, seal_bundle
from mulle.core.errors import CheckError, MulleError, SpecError
from mulle.core.schema import ColumnType
from mulle.formats.bundle import MANIFEST, ColumnInfo, Graph, GraphInput, read_manifest, verify_bundle
from mulle.formats.bundle_trust import load_trusted_bundle
from mulle.formats.golden import Golden, read_golden
from mulle.formats.signing import key_path, load_or_create_key, public_key

KEY = bytes(range(32))


def content(**changes) -> BundleContent:
    fields = {
        "model_name": "이탈",
        "task": "binary",
        "graph": b"not really a graph: sealing does not look inside",
        "graph_info": Graph(inputs=(GraphInput("나이", "double", ("나이",)),), output="probabilities"),
        "columns": [ColumnInfo("나이", ColumnType.NUMBER)],
        "baseline": b"{}",
        "golden": Golden(rows=({"나이": 3.0},), outputs=((0.25, 0.75),)).to_bytes(),
        "classes": ["No", "Yes"],
        "positive": "Yes",
    }
    return BundleContent(**{**fields, **changes})


def seal(root, **changes):
    return seal_bundle(root, content(**changes), attestations={"run.json": b"{}"}, private_key=KEY)


def test_a_sealed_bundle_verifies_and_keeps_its_identity(tmp_path):
    """Digest, signature and golden requests come back; other attestations do not change the digest."""
    first = seal(tmp_path / "a")
    second = seal_bundle(tmp_path / "b", content(), attestations={"timings.json": b"[1]"}, private_key=bytes(32))

    assert first.digest == second.digest
    assert first.manifest == load_trusted_bundle(first.path, trusted=[f"ed25519:{public_key(KEY)}"], digest=first.digest)
    assert ((0.25, 0.75),) == read_golden(first.path / "golden.json").outputs


def test_sealing_twice_keeps_the_first_folder(tmp_path):
    """The same content again is the same bundle, and nothing half-written stays."""
    first, second = seal(tmp_path), seal(tmp_path)

    assert first.path == second.path
    assert [first.path.name] == [p.name for p in tmp_path.iterdir()]


def test_a_later_attestation_is_added_and_an_earlier_one_kept(tmp_path):
    """Sealing the same content again puts new papers beside it; nobody rewrites the old ones."""
    first = seal(tmp_path)
    seal_bundle(tmp_path, content(), attestations={"run.json": b"[2]", "model.int8.onnx": b"int8"}, private_key=KEY)
    papers = {path.name: path.read_bytes() for path in (first.path / "attestations").iterdir()}

    assert ["model.int8.onnx", "run.json", "signature.json"] == sorted(papers)
    assert (b"{}", b"int8") == (papers["run.json"], papers["model.int8.onnx"])


@pytest.mark.parametrize(
    "change", [{"positive": "No"}, {"graph": b"x"}, {"threshold": 0.4}, {"baseline": b"[]"}], ids=lambda c: next(iter(c))
)
def test_whatever_counts_changes_the_digest(tmp_path, change):
    """Graph, schema, baseline, golden and threshold are the identity."""
    assert seal(tmp_path).digest != seal(tmp_path, **change).digest


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        pytest.param(lambda p: flip(p / "model.onnx", 5), "model.onnx", id="a flipped byte in the graph"),
        pytest.param(lambda p: (p / "model.onnx").write_bytes(b"short"), "model.onnx", id="a truncated graph"),
        pytest.param(lambda p: (p / "golden.json").unlink(), "golden.json", id="a missing file"),
        pytest.param(lambda p: flip(p / "golden.json", 20), "golden.json", id="changed golden requests"),
        pytest.param(lambda p: (p / MANIFEST).write_bytes((p / MANIFEST).read_bytes()[:100]), MANIFEST, id="a truncated manifest"),
        pytest.param(lambda p: (p / MANIFEST).write_bytes((p / MANIFEST).read_bytes() + b"\n"), MANIFEST, id="a manifest edited by hand"),
    ],
)
def test_tampering_is_found_and_the_file_named(tmp_path, damage, named):
    """No byte of a sealed file can change unseen."""
    bundle = seal(tmp_path)
    damage(bundle.path)

    with pytest.raises(CheckError) as caught:
        verify_bundle(bundle.path, digest=bundle.digest)

    assert named in str(caught.value)


def test_a_file_replaced_by_a_link_is_refused(tmp_path):
    """A link could point at anything by the time it is opened."""
    bundle = seal(tmp_path)
    graph = bundle.path / "model.onnx"
    shutil.copy(graph, tmp_path / "elsewhere")
    graph.unlink()
    graph.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(CheckError):
        verify_bundle(bundle.path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "C:x", "a\\b", "", "x\x00"])
def test_a_manifest_cannot_name_files_outside(tmp_path, name):
    """Hostile paths are refused before any file is opened."""
    bundle = seal(tmp_path)
    document = json.loads((bundle.path / MANIFEST).read_bytes())
    document["files"][name] = document["files"]["model.onnx"]
    (bundle.path / MANIFEST).write_text(json.dumps(document), encoding="utf-8")

    with pytest.raises(CheckError) as caught:
        read_manifest(bundle.path)

    assert caught.value.code == "bundle-path"


def test_a_newer_manifest_is_refused_with_the_way_out(tmp_path):
    """A version this reader does not know is not guessed at."""
    bundle = seal(tmp_path)
    document = json.loads((bundle.path / MANIFEST).read_bytes())
    document["version"] = 2
    (bundle.path / MANIFEST).write_text(json.dumps(document), encoding="utf-8")

    with pytest.raises(CheckError, match="version 2") as caught:
        read_manifest(bundle.path)

    assert "upgrade" in caught.value.fix


def test_a_foreign_signature_and_a_wrong_one_are_different_errors(tmp_path):
    """Untrusted: somebody else's key. Invalid: the right key over other bytes."""
    bundle = seal(tmp_path)

    with pytest.raises(CheckError) as untrusted:
        load_trusted_bundle(bundle.path, trusted=[public_key(bytes(32))])
    signature = bundle.path / "attestations" / "signature.json"
    document = json.loads(signature.read_bytes())
    document["signature"] = "00" * 64
    signature.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(CheckError) as invalid:
        load_trusted_bundle(bundle.path, trusted=[public_key(KEY)])

    assert ("signature-untrusted", "signature-invalid") == (untrusted.value.code, invalid.value.code)


@pytest.mark.parametrize("name", ["../x", "a/b", "signature.json", "", ".."])
def test_an_attestation_is_a_plain_file_name(tmp_path, name):
    """An attestation cannot leave its folder nor stand in for the signature; nothing is left behind."""
    with pytest.raises(SpecError):
        seal_bundle(tmp_path, content(), attestations={name: b""}, private_key=KEY)

    assert [] == list(tmp_path.iterdir())


def test_an_unwritable_folder_is_a_clear_error(tmp_path):
    """A file where the folder should be: no traceback."""
    (tmp_path / "bundles").write_text("in the way", encoding="utf-8")

    with pytest.raises(MulleError) as caught:
        seal(tmp_path / "bundles")

    assert caught.value.code == "bundle-unwritable"


def test_the_laptop_key_is_private_and_stable():
    """Made once with mode 0600; readable by others is refused."""
    path = key_path()
    first = load_or_create_key(path)

    assert first == load_or_create_key(path)
    assert 0o600 == path.stat().st_mode & 0o777
    path.chmod(0o644)
    with pytest.raises(SpecError) as caught:
        load_or_create_key(path)
    assert caught.value.code == "key-unusable"
