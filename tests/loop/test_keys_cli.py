"""`mulle keys` as it is typed: what it prints once and never again, and who else may type at the same moment."""

import json
import os
import subprocess
import sys

import pytest

from mulle.apps.cli.main import main
from mulle.formats.api_keys import hash_key, read_keys
from mulle.loop.api_keys import key_source
from mulle.loop.paths import state_paths
from mulle.loop.settings import load_settings

MULLE = [sys.executable, "-c", "import sys; from mulle.apps.cli.main import main; sys.exit(main())"]


@pytest.fixture
def mulle(tmp_path, capsys):
    """Return a function that runs `mulle keys …` in an empty folder and gives code, output and notes."""

    def run(*words, project=tmp_path):
        code = main(["keys", *words, "-p", str(project)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def document(folder):
    return folder / ".mulle" / "keys.json"


def write_settings(folder, reference):
    (folder / "mulle.toml").write_text(
        f'[project]\nname = "가게"\ncode = "project:project"\n[env.production]\napi_key = "{reference}"\n', encoding="utf-8"
    )


def test_a_key_is_shown_once_alone_on_its_line(mulle, tmp_path):
    """Standard output is the key and nothing else, so that a script can take it; the file has its hash, mode 0600."""
    code, out, notes = mulle(
        "create", "checkout", "--deployment", "churn", "-d", "이탈", "--rate", "200", "--burst", "400", "--expires", "90d"
    )
    key = out.strip()
    (kept,) = read_keys(document(tmp_path))

    assert 0 == code
    assert hash_key(key).hex() == kept.sha256
    assert key not in notes
    assert 0o600 == document(tmp_path).stat().st_mode & 0o777
    assert ("checkout", ("churn", "이탈"), 200.0, 400) == (kept.name, kept.deployments, kept.rate_per_s, kept.burst)
    assert 90 * 86_400 * 10**9 == kept.expires_ns - kept.created_ns


def test_list_and_json_tell_everything_but_the_secret(mulle):
    """Names of any script, scopes, rates and times; neither key nor hash."""
    created = json.loads(mulle("create", "민지팀", "--json")[1])
    mulle("create", "prometheus", "--metrics")
    code, table, _ = mulle("list")
    listed = mulle("list", "--json")[1]
    keys = {key["name"]: key for key in json.loads(listed)["keys"]}

    assert 0 == code
    assert all(text in table for text in ("민지팀", "all deployments", "prometheus", "metrics", created["id"]))
    assert (["*"], False) == (keys["민지팀"]["deployments"], keys["민지팀"]["metrics"])
    assert ([], True) == (keys["prometheus"]["deployments"], keys["prometheus"]["metrics"])
    for shown in (table, listed):
        assert created["key"].split("_")[2] not in shown
        assert hash_key(created["key"]).hex() not in shown


def test_a_revoked_key_is_gone_by_name_or_id(mulle, tmp_path):
    """Either ends it; a second time there is nothing to end."""
    mulle("create", "one")
    key_id = json.loads(mulle("create", "two", "--json")[1])["id"]
    codes = [mulle("revoke", "one")[0], mulle("revoke", key_id)[0]]
    again = mulle("revoke", "one")

    assert [0, 0] == codes
    assert () == read_keys(document(tmp_path))
    assert 2 == again[0]
    assert "error[key-unknown-name]" in again[2]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["twice"], "key-exists", id="a name that is taken"),
        pytest.param(["../x"], "name-invalid", id="a name that is a path"),
        pytest.param(["x", "-d", "a/b"], "name-invalid", id="a deployment that is a path"),
        pytest.param(["x", "-d", "*", "-d", "churn"], "key-options", id="everything and something"),
        pytest.param(["x", "--rate", "0"], "key-options", id="a rate of nothing"),
        pytest.param(["x", "--rate", "nan"], "key-options", id="a rate that is no number"),
        pytest.param(["x", "--rate", "inf"], "key-options", id="a rate without end"),
        pytest.param(["x", "--burst", "5"], "key-options", id="a burst without a rate"),
        pytest.param(["x", "--rate", "1", "--burst", "0"], "key-options", id="a burst of nothing"),
        pytest.param(["x", "--expires", "tomorrow"], "key-options", id="a time that is none"),
        pytest.param(["x", "--expires", "0d"], "key-options", id="a time that has passed"),
    ],
)
def test_what_cannot_be_a_key_is_refused(mulle, tmp_path, words, expected):
    """The reason in words, exit code 2, and the document as it was."""
    mulle("create", "twice")
    before = document(tmp_path).read_bytes()
    code, out, _ = mulle("create", *words, "--json")

    assert (2, expected) == (code, json.loads(out)["error"]["code"])
    assert before == document(tmp_path).read_bytes()


def test_a_folder_that_is_not_there_is_not_made(mulle, tmp_path):
    """A mistyped project is said, instead of keys that no server reads."""
    code, _, notes = mulle("create", "x", project=tmp_path / "mistyped")

    assert 2 == code
    assert "error[project-missing]" in notes
    assert not (tmp_path / "mistyped").exists()


def test_a_truncated_file_is_said_and_left(mulle, tmp_path):
    """Nothing is written over what could not be read."""
    mulle("create", "one")
    document(tmp_path).write_bytes(document(tmp_path).read_bytes()[:50])
    results = [mulle("create", "two"), mulle("list"), mulle("revoke", "one")]

    assert [1, 1, 1] == [code for code, _, _ in results]
    assert all("error[format-unreadable]" in notes for _, _, notes in results)
    assert 50 == document(tmp_path).stat().st_size


def test_keys_made_at_the_same_moment_are_all_kept(tmp_path):
    """Eight processes, eight keys, one document: the lock lets none write over another's."""
    command = [*MULLE, "keys", "create", "-p", str(tmp_path)]
    processes = [
        subprocess.Popen([*command, f"열쇠-{i}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUTF8": "1"})
        for i in range(8)
    ]
    hashes = [hash_key(process.communicate(timeout=60)[0].decode().strip()).hex() for process in processes]
    kept = read_keys(document(tmp_path))

    assert [0] * 8 == [process.returncode for process in processes]
    assert set(hashes) == {key.sha256 for key in kept}
    assert {f"열쇠-{i}" for i in range(8)} == {key.name for key in kept}


def test_an_environment_may_keep_its_keys_elsewhere(mulle, tmp_path):
    """`api_key = "file://…"` is the document `mulle keys` changes there, and the one the server reads."""
    write_settings(tmp_path, "file://열쇠/keys.json")
    code, _, _ = mulle("create", "one", "--env", "production")
    source = key_source(load_settings(tmp_path, "production"), state_paths(tmp_path).root)

    assert 0 == code
    assert 1 == len(read_keys(tmp_path / "열쇠" / "keys.json"))
    assert str(tmp_path / "열쇠" / "keys.json") == source.path
    assert not document(tmp_path).exists()


def test_a_key_from_the_environment_cannot_be_listed(mulle, tmp_path, monkeypatch):
    """`api_key = "env://…"` is one key as text: the server takes it, and `mulle keys` says where to change it."""
    write_settings(tmp_path, "env://SHOP_KEY")
    monkeypatch.setenv("SHOP_KEY", "f3" * 32)
    code, _, notes = mulle("list", "--env", "production")
    source = key_source(load_settings(tmp_path, "production"), state_paths(tmp_path).root)

    assert 2 == code
    assert "error[keys-elsewhere]" in notes
    assert "f3f3" not in notes
    assert ("f3" * 32, None) == (source.text, source.path)


def test_a_plain_key_in_a_file_is_not_written_over(mulle, tmp_path):
    """A file with one key as plain text is no document: `mulle keys` refuses to make one of it."""
    path = tmp_path / "secret"
    path.write_text("f3" * 32 + "\n")
    path.chmod(0o600)
    code, _, notes = mulle("create", "one", "--file", str(path))

    assert 2 == code
    assert "error[keys-elsewhere]" in notes
    assert "f3" * 32 + "\n" == path.read_text()
