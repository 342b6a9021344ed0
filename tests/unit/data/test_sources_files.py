"""Reading files of the project, what they leave for planning, and secrets by reference."""

import os
import subprocess
import sys
import time

import polars as pl
import pytest

from mulle.core.errors import SpecError
from mulle.data.freshness import Freshness, current_token, project_folder, traced_reads
from mulle.data.secrets import expand_secrets, require_no_password, resolve_secret, scrub
from mulle.data.sources import read_csv, read_parquet


@pytest.fixture
def project(tmp_path):
    """Return a project's folder with one Parquet and one CSV file, in force for the test."""
    (tmp_path / "data").mkdir()
    pl.DataFrame({"나이": [1, 2]}).write_parquet(tmp_path / "data" / "고객.parquet")
    (tmp_path / "data" / "customers.csv").write_text("a,b\n1,x\n", encoding="utf-8")
    with project_folder(tmp_path):
        yield tmp_path


def test_paths_start_at_the_project(project):
    """Wherever the process stands, `data/…` is the project's; the trace keeps relative places."""
    with traced_reads() as reads:
        frame = read_parquet("data/고객.parquet")
        read_csv("data/customers.csv")

    assert frame["나이"].to_list() == [1, 2]
    assert [read.location for read in reads] == ["data/고객.parquet", "data/customers.csv"]
    assert [current_token(read) for read in reads] == [read.token for read in reads]


def test_a_touched_file_is_still_fresh_and_a_changed_one_is_not(project):
    """Time alone means nothing: the bytes decide."""
    path = project / "data" / "customers.csv"
    with traced_reads() as reads:
        read_csv("data/customers.csv")
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 10**9))
    touched = current_token(reads[0])
    path.write_text("a,b\n2,x\n", encoding="utf-8")
    same_size = current_token(reads[0])
    path.write_text("a,b\n2,x\n3,y\n", encoding="utf-8")

    assert touched == reads[0].token
    assert same_size not in (None, reads[0].token)
    assert current_token(reads[0]) not in (None, reads[0].token)


def test_a_file_that_is_gone_cannot_be_told(project):
    """None means: read again, and the read will say what is wrong."""
    with traced_reads() as reads:
        read_csv("data/customers.csv")
    (project / "data" / "customers.csv").unlink()

    assert current_token(Freshness.from_dict(reads[0].to_dict())) is None


def test_traces_nest(project):
    """An outer trace sees what an inner one gathered, notes too."""
    (project / "data" / "blank.csv").write_text("a,b\n1,x\n ,y\n", encoding="utf-8")
    with traced_reads() as outer:
        with traced_reads() as inner:
            read_csv("data/blank.csv")
        read_csv("data/customers.csv")

    assert len(inner) == 1
    assert len(outer) == 2
    assert inner.notes == outer.notes != []


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        pytest.param("data/custmers.parquet", None, "source-missing", "data/custmers.parquet", id="a typing error"),
        pytest.param("data", None, "source-missing", "folder", id="a folder"),
        pytest.param("nowhere/x.parquet", None, "source-missing", "no folder", id="a folder that is not there"),
        pytest.param("data/e.parquet", b"", "source-empty", "without a single byte", id="empty"),
        pytest.param("data/h.parquet", b"<html><body>login", "source-html", "web page", id="a web page"),
        pytest.param("data/c.parquet", b"a,b\n1,2\n", "parquet-unreadable", "not a Parquet file", id="a CSV"),
        pytest.param("data/t.parquet", b"PAR1" + b"x" * 100, "parquet-truncated", "cut off", id="truncated"),
        pytest.param("data/d.parquet", b"PAR1" + b"x" * 100 + b"PAR1", "parquet-unreadable", "cannot be read", id="damaged"),
    ],
)
def test_what_is_wrong_with_a_parquet_file_is_said(project, name, content, code, said):
    """Each has an error of its own, and leaves no trace of a read."""
    if content is not None:
        (project / name).write_bytes(content)
    with traced_reads() as reads, pytest.raises(SpecError) as caught:
        read_parquet(name)

    assert code == caught.value.code
    assert said in caught.value.what
    assert list(reads) == []


def test_the_nearest_file_is_named(project):
    """A typing error is answered with what was probably meant."""
    with pytest.raises(SpecError) as caught:
        read_csv("data/custmers.csv")

    assert "data/customers.csv" in caught.value.fix


def test_planning_needs_no_table_engine():
    """`current_token` is asked on every run, and must not import polars for it."""
    code = "import sys; import mulle.data.freshness, mulle.data.secrets; sys.exit('polars' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False)

    assert done.returncode == 0


def test_secrets_come_from_the_environment_and_from_files(tmp_path, monkeypatch):
    """A reference alone is the value; inside a URI the value is percent-encoded."""
    monkeypatch.setenv("DB_PASSWORD", "p@ss/word")
    (tmp_path / "key").write_text("s3cret\n", encoding="utf-8")

    assert resolve_secret("env://DB_PASSWORD") == "p@ss/word"
    assert resolve_secret("file://key", root=tmp_path) == "s3cret"
    assert expand_secrets("postgresql://app:${env://DB_PASSWORD}@db/x")[0] == "postgresql://app:p%40ss%2Fword@db/x"


def test_what_was_resolved_can_be_scrubbed(monkeypatch):
    """A driver that repeats the URI in its error shows no secret, encoded or not."""
    monkeypatch.setenv("DB_PASSWORD", "p@ss/word")
    monkeypatch.setenv("DB_URL", "mysql://u:hunter22@h/d")
    text, secrets = expand_secrets("postgresql://app:${env://DB_PASSWORD}@db/x")
    whole, more = expand_secrets("env://DB_URL")

    assert scrub(f"cannot log in with {text} p@ss/word", secrets) == "cannot log in with postgresql://app:…@db/x …"
    assert "hunter22" not in scrub(f"refused: {whole} (hunter22)", more)


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        pytest.param("env://NOT_SET_ANYWHERE", "secret-missing", id="an unset variable"),
        pytest.param("env://EMPTY_ONE", "secret-missing", id="an empty variable"),
        pytest.param("file://no/such/file", "secret-missing", id="a missing file"),
        pytest.param("hunter22", "secret-reference", id="the secret itself"),
    ],
)
def test_a_secret_that_cannot_be_resolved_is_not_shown(reference, code, monkeypatch):
    """The error names the reference; a value given by mistake is not repeated."""
    monkeypatch.setenv("EMPTY_ONE", "")
    with pytest.raises(SpecError) as caught:
        resolve_secret(reference)

    assert code == caught.value.code
    assert "hunter22" not in str(caught.value)


def test_a_password_in_plain_text_is_refused_without_showing_it():
    """project.py goes into git."""
    with pytest.raises(SpecError) as caught:
        require_no_password("postgresql://app:hunter22@db/x", "the URI")

    assert caught.value.code == "secret-literal"
    assert "hunter22" not in str(caught.value)
    assert "${env://DB_PASSWORD}" in caught.value.fix
    require_no_password("postgresql://app:${env://X}@db/x", "the URI")
