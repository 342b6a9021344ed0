"""The sources against real stores: S3 (moto's server on loopback) and SQL (a SQLite file, through both readers)."""

import io
import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from mulle.core.errors import SpecError, UnavailableError
from mulle.data.freshness import Freshness, current_token, project_folder, traced_reads
from mulle.data.sources import read_s3, read_sql
from mulle.data.sql import fetch_connectorx

KEYS = {"access_key": "env://S3_KEY", "secret_key": "env://S3_SECRET", "region": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint():
    """Return the address of an S3 server that lives as long as this module's tests."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch):
    """Return a client of a bucket with versions, and the credentials in the environment."""
    import boto3

    monkeypatch.setenv("S3_KEY", "key-of-the-test")
    monkeypatch.setenv("S3_SECRET", "secret-of-the-test")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="key-of-the-test",
        aws_secret_access_key="secret-of-the-test",
    )
    client.create_bucket(Bucket="shop")
    yield client
    for item in client.list_objects_v2(Bucket="shop").get("Contents", []):
        client.delete_object(Bucket="shop", Key=item["Key"])
    client.delete_bucket(Bucket="shop")
    client.close()


def parquet(**columns):
    """Return a table as Parquet bytes."""
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


def test_an_object_is_read_and_its_etag_is_the_token(bucket, endpoint):
    """The same object is fresh by one HEAD; another one under its name is not."""
    bucket.put_object(Bucket="shop", Key="고객/a.parquet", Body=parquet(나이=[1, 2]))
    with traced_reads() as reads:
        frame = read_s3("s3://shop/고객/a.parquet", endpoint_url=endpoint, **KEYS)
    kept = Freshness.from_dict(reads[0].to_dict())
    fresh = current_token(kept)
    bucket.put_object(Bucket="shop", Key="고객/a.parquet", Body=parquet(나이=[1, 3]))

    assert frame["나이"].to_list() == [1, 2]
    assert fresh == kept.token
    assert current_token(kept) not in (None, kept.token)
    assert "secret-of-the-test" not in str(kept.to_dict())


def test_a_csv_object_is_read_like_a_csv_file(bucket, endpoint):
    """By its name."""
    bucket.put_object(Bucket="shop", Key="a.csv", Body="이름,나이\n김, \n이,3\n".encode())
    with traced_reads() as reads:
        frame = read_s3("s3://shop/a.csv", endpoint_url=endpoint, **KEYS)

    assert frame.rows() == [("김", None), ("이", 3)]
    assert "나이" in reads.notes[0]


@pytest.mark.parametrize(
    ("uri", "options", "error", "code"),
    [
        pytest.param("s3://shop/none.parquet", {}, SpecError, "source-missing", id="no such object"),
        pytest.param("s3://no-such-bucket/x.parquet", {}, SpecError, "source-missing", id="no such bucket"),
        pytest.param("s3://shop", {}, SpecError, "s3-uri", id="a bucket alone"),
        pytest.param("https://shop/x.parquet", {}, SpecError, "s3-uri", id="not S3"),
        pytest.param(
            "s3://shop/x.parquet", {"endpoint_url": "http://127.0.0.1:9"}, UnavailableError, "source-unavailable", id="nobody answers"
        ),
        pytest.param("s3://shop/x.parquet", {"secret_key": "plain"}, SpecError, "secret-literal", id="a secret in plain text"),
        pytest.param("s3://shop/x.parquet", {"access_key": "env://NOT_SET_HERE"}, SpecError, "secret-missing", id="an unset variable"),
        pytest.param("s3://shop/big.parquet", {"max_bytes": 10}, SpecError, "source-too-large", id="larger than allowed"),
        pytest.param("s3://shop/page.parquet", {}, SpecError, "source-html", id="a web page under that name"),
    ],
)
def test_what_is_wrong_with_an_object_is_said(bucket, endpoint, uri, options, error, code):
    """Each has an error of its own, and none shows a secret."""
    bucket.put_object(Bucket="shop", Key="big.parquet", Body=parquet(x=[1]))
    bucket.put_object(Bucket="shop", Key="page.parquet", Body=b"<html>sign in</html>")
    with pytest.raises(error) as caught:
        read_s3(uri, **({"endpoint_url": endpoint} | KEYS | options))

    assert code == caught.value.code
    assert "secret-of-the-test" not in str(caught.value)
    assert "plain" not in caught.value.what


@pytest.fixture
def shop(tmp_path):
    """Return a project's folder with a SQLite database."""
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("CREATE TABLE 고객 (id INTEGER, 이름 TEXT, 금액 REAL, 섞임)")
        connection.executemany("INSERT INTO 고객 VALUES (?, ?, ?, ?)", [(1, "김", 1.5, 1), (2, None, None, "x")])
        connection.commit()
    with project_folder(tmp_path):
        yield tmp_path


def insert(folder):
    """Add a row."""
    with closing(sqlite3.connect(folder / "shop.db")) as connection:
        connection.execute("INSERT INTO 고객 VALUES (3, '박', 2.5, 3)")
        connection.commit()


def test_a_query_is_read_with_its_own_freshness(shop):
    """The user's query says whether anything changed; without one nobody can tell."""
    with traced_reads() as reads:
        frame = read_sql("SELECT id, 이름, 금액 FROM 고객 ORDER BY id", "sqlite:///shop.db", freshness="SELECT count(*), max(id) FROM 고객")
        read_sql("SELECT id FROM 고객", "sqlite:///shop.db")
    kept, unknown = (Freshness.from_dict(read.to_dict()) for read in reads)
    fresh = current_token(kept)
    insert(shop)

    assert frame.rows() == [(1, "김", 1.5), (2, None, None)]
    assert fresh == kept.token
    assert current_token(kept) not in (None, kept.token)
    assert unknown.token is None
    assert current_token(unknown) is None


def test_the_whole_uri_may_be_a_secret(shop, monkeypatch):
    """What is kept is the reference."""
    monkeypatch.setenv("DATABASE_URL", "sqlite:///shop.db")
    with traced_reads() as reads:
        frame = read_sql("SELECT id FROM 고객", "env://DATABASE_URL")

    assert frame.height == 2
    assert reads[0].location == "env://DATABASE_URL"


@pytest.mark.parametrize(
    ("query", "uri", "code"),
    [
        pytest.param("DELETE FROM 고객", "sqlite:///shop.db", "sql-query", id="a query that does not read"),
        pytest.param("WITH x AS (SELECT 1) INSERT INTO 고객(id) SELECT 1", "sqlite:///shop.db", "sql-refused", id="a write in disguise"),
        pytest.param("SELECT nope FROM 고객", "sqlite:///shop.db", "sql-refused", id="no such column"),
        pytest.param("SELECT id FROM 고객", "sqlite:///none.db", "source-missing", id="no such file"),
        pytest.param("SELECT id FROM 고객", "sqlite://", "sql-uri", id="no file at all"),
        pytest.param("SELECT 섞임 FROM 고객", "sqlite:///shop.db", "column-mixed-types", id="a column of mixed types"),
        pytest.param("SELECT id, id FROM 고객", "sqlite:///shop.db", "column-name", id="a column twice"),
        pytest.param("SELECT 1", "postgresql://u:hunter22@127.0.0.1:9/x", "secret-literal", id="a password in plain text"),
    ],
)
def test_what_is_wrong_with_a_query_is_said(shop, query, uri, code):
    """Each has an error of its own; the database is opened for reading only."""
    with pytest.raises(SpecError) as caught:
        read_sql(query, uri)

    assert code == caught.value.code
    assert "hunter22" not in str(caught.value)


def test_a_database_that_does_not_answer_shows_no_password(monkeypatch):
    """The driver repeats URIs; the error does not."""
    pytest.importorskip("connectorx")
    monkeypatch.setenv("DB_PASSWORD", "hunter22")
    with pytest.raises((UnavailableError, SpecError)) as caught:
        read_sql("SELECT 1", "postgresql://app:${env://DB_PASSWORD}@127.0.0.1:9/shop")

    assert caught.value.code == "source-unavailable"
    assert "hunter22" not in str(caught.value)


def test_both_readers_agree(shop):
    """The one through connectorx, which reads every database but SQLite, gives the same table."""
    pytest.importorskip("connectorx")
    query = "SELECT id, 이름, 금액 FROM 고객 ORDER BY id"
    uri = f"sqlite://{shop / 'shop.db'}"

    assert fetch_connectorx(query, uri, shown=uri, secrets=()).rows() == read_sql(query, "sqlite:///shop.db").rows()


@pytest.fixture(scope="module")
def postgres(require_service):
    """Return the port of a PostgreSQL server of this module's own, user `app`, password `hunter22`."""
    pytest.importorskip("connectorx")
    found = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    require_service(found is not None, "PostgreSQL", "apt-get install postgresql")
    bin_folder = Path(found).resolve().parent
    folder = Path(tempfile.mkdtemp(prefix="mulle-pg-"))
    # the server refuses to run as root
    who = {"user": "nobody"} if os.geteuid() == 0 else {}
    if who:
        shutil.chown(folder, "nobody")
    (folder / "password").write_text("hunter22", encoding="utf-8")
    (folder / "password").chmod(0o644)
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]

    def call(program, *arguments):
        subprocess.run([bin_folder / program, "-D", folder / "data", *arguments], check=True, stdout=subprocess.DEVNULL, cwd=folder, **who)

    try:
        call("initdb", "-U", "app", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "-E", "UTF8", "--locale=C")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        call("pg_ctl", "-l", folder / "log", "-o", options, "-w", "start")
        yield port
        call("pg_ctl", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_postgres_is_read_with_its_types(postgres, monkeypatch):
    """Text, whole and real numbers, decimals, booleans, dates and zoned moments come through; the password stays a reference."""
    from mulle.core.schema import ColumnType
    from mulle.data.dataset import infer_schema, normalise

    monkeypatch.setenv("DB_PASSWORD", "hunter22")
    query = (
        "SELECT g AS 번호, '고객-' || g AS 이름, g * 1.5::float8 AS 금액, g::numeric / 4 AS 비율, g % 2 = 0 AS 예, "
        "DATE '2020-01-01' + g AS 날, TIMESTAMPTZ '2020-01-01 09:00+09' AS 때 FROM generate_series(1, 2) AS g ORDER BY g"
    )
    uri = f"postgresql+psycopg://app:${{env://DB_PASSWORD}}@127.0.0.1:{postgres}/postgres"
    with traced_reads() as reads:
        frame = normalise(read_sql(query, uri, freshness="SELECT 1"))
    kinds = [column.type for column in infer_schema(frame)]

    assert kinds == [
        ColumnType.NUMBER,
        ColumnType.TEXT,
        ColumnType.NUMBER,
        ColumnType.NUMBER,
        ColumnType.BOOLEAN,
        *[ColumnType.DATETIME] * 2,
    ]
    assert frame.row(1)[:5] == (2, "고객-2", 3.0, 0.5, True)
    assert frame["때"][0].isoformat() == "2020-01-01T00:00:00"
    assert current_token(reads[0]) == reads[0].token
    assert "hunter22" not in str(reads[0])


@pytest.mark.slow
def test_a_refused_login_is_not_an_outage(postgres, monkeypatch):
    """The driver tries for half a minute; what it says then is passed on without the password."""
    monkeypatch.setenv("DB_PASSWORD", "not-the-one")
    with pytest.raises(SpecError) as caught:
        read_sql("SELECT 1 AS a", f"postgresql://app:${{env://DB_PASSWORD}}@127.0.0.1:{postgres}/postgres")

    assert caught.value.code == "sql-refused"
    assert "authentication failed" in caught.value.what
    assert "not-the-one" not in str(caught.value)
