"""API keys: who may ask, and what is said to whoever may not. Time is not measured; how the comparison is made is."""

import hmac
import json
import os

import pytest

from mulle.core.errors import CheckError, MulleError, SpecError, UnavailableError
from mulle.formats import api_keys
from mulle.formats.api_keys import KeySource, add_key, hash_key, make_key, parse_keys, read_keys, revoke_key
from mulle.serve.access import keys as ring_module
from mulle.serve.access.guard import GRPC_STATUS_OF_CODE, STATUS_OF_CODE, Guard, headers_of
from mulle.serve.access.keys import ANYBODY, KeyRing
from mulle.serve.access.rates import RateTable

NOW = 1_800_000_000 * 10**9
DAY = 86_400 * 10**9


class Office:
    """A key file, and a guard over it."""

    def __init__(self, folder):
        self.path = folder / "keys.json"
        self.guard = None

    def make(self, name, **options):
        kept, text = make_key(name, now_ns=NOW, **options)
        add_key(self.path, kept)
        return text

    def open(self, *, required=False):
        self.guard = Guard(KeyRing(KeySource(path=str(self.path)), required=required, rates=RateTable(None), now_ns=NOW))
        return self.guard

    def ask(self, *headers, deployment="churn", now_ns=NOW, now_s=10.0):
        """Return the name of whoever was let in, or the code of the refusal."""
        try:
            return self.guard.authorize(headers, deployment, now_ns=now_ns, now_s=now_s).name
        except MulleError as error:
            return error.code


@pytest.fixture
def office(tmp_path):
    """Return a place for keys, empty."""
    return Office(tmp_path)


def bearer(key):
    return ("authorization", f"Bearer {key}")


def test_a_key_opens_by_either_header(office):
    """Bearer in any case, x-api-key, or the same key in both."""
    key = office.make("가게")
    office.open()

    assert ["가게"] * 5 == [
        office.ask(bearer(key)),
        office.ask(("authorization", f"bEARER   {key} ")),
        office.ask(("x-api-key", key)),
        office.ask(bearer(key), ("x-api-key", key)),
        office.ask(("authorization", "Basic cHJveHk6cHJveHk="), ("x-api-key", key)),
    ]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param([], "key-missing", id="nothing"),
        pytest.param([("authorization", "")], "key-missing", id="an empty header"),
        pytest.param([("authorization", "Bearer ")], "key-missing", id="a scheme without a key"),
        pytest.param([("authorization", "Basic bXVsbGU6bXVsbGU=")], "key-missing", id="another scheme"),
        pytest.param([("authorization", "KEY")], "key-missing", id="a key without a scheme"),
        pytest.param([("x-api-key", " ")], "key-missing", id="a blank"),
        pytest.param([("cookie", "x-api-key=KEY")], "key-missing", id="a key in a cookie"),
        pytest.param([("x-api-key", "KEY"), ("x-api-key", "other")], "key-unknown", id="two keys, the right one first"),
        pytest.param([("x-api-key", "other"), ("authorization", "Bearer KEY")], "key-unknown", id="two keys, the right one last"),
        pytest.param([("x-api-key", "x" * 1_000_000)], "key-unknown", id="a megabyte"),
        pytest.param([("x-api-key", "KEY" + "0" * 1_000_000)], "key-unknown", id="the key and a megabyte behind it"),
        pytest.param([("x-api-key", "ÿþ키\udcff")], "key-unknown", id="no ASCII, no Unicode even"),
        pytest.param([("x-api-key", "KEY\x00")], "key-unknown", id="the key and a zero"),
        pytest.param([("x-api-key", "mk_")], "key-unknown", id="the beginning of one"),
        pytest.param([("x-api-key", "mk_000000000000_" + "0" * 64)], "key-unknown", id="an id of nobody"),
        pytest.param([("x-api-key", f"a{i}") for i in range(1000)], "key-unknown", id="a thousand keys"),
    ],
)
def test_hostile_headers_let_nobody_in(office, headers, expected):
    """Whatever is sent instead of one right key is one of two refusals."""
    key = office.make("shop")
    office.open()

    assert expected == office.ask(*[(name, value.replace("KEY", key)) for name, value in headers])


def test_an_unknown_id_and_a_wrong_secret_get_the_same_answer(office):
    """Nobody learns from the refusal whether an id exists; the key that was sent is not in it."""
    key = office.make("shop")
    guard = office.open()
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    refusals = []
    for tried in (wrong, f"mk_{'f' * 12}_{'0' * 64}"):
        with pytest.raises(SpecError) as raised:
            guard.identify([("x-api-key", tried)], now_ns=NOW)
        refusals.append(raised.value.to_dict())

    assert refusals[0] == refusals[1]
    assert wrong not in json.dumps(refusals)
    assert {"www-authenticate": 'Bearer realm="mulle"'} == headers_of(raised.value)


@pytest.mark.parametrize(
    "sent", [pytest.param("right", id="the right key"), pytest.param("wrong", id="a wrong one"), pytest.param("nobody", id="an unknown id")]
)
def test_every_check_is_one_constant_time_comparison(office, monkeypatch, sent):
    """Known or not, right or wrong: one hash of 32 bytes is compared with 32 bytes by the function that takes constant time."""
    key = office.make("shop")
    ring = office.open().ring
    compared = []
    monkeypatch.setattr(ring_module.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or hmac_equal(a, b))
    shown = {"right": key, "wrong": key[:-2] + "zz", "nobody": f"mk_{'f' * 12}_{'0' * 64}"}[sent]
    found = ring.check(shown)

    assert [(32, 32)] == compared
    assert (sent == "right") == (found is not None)


hmac_equal = hmac.compare_digest


def test_a_key_is_for_its_deployments(office):
    """Another deployment is refused, one that does not exist no differently."""
    key = office.make("shop", deployments=("churn", "이탈"))
    office.open()

    assert ["shop", "shop", "key-scope", "key-scope"] == [
        office.ask(bearer(key), deployment=name) for name in ("churn", "이탈", "fraud", "no-such-thing")
    ]


def test_metrics_have_a_key_of_their_own(office):
    """A key for all deployments, or one made for the metrics; not one for a single deployment."""
    everything, scraper, single = (
        office.make("everything"),
        office.make("prometheus", deployments=(), metrics=True),
        office.make("one", deployments=("churn",)),
    )
    guard = office.open()

    def may_read(key):
        try:
            return guard.admit_metrics(guard.identify([bearer(key)], now_ns=NOW))
        except SpecError as error:
            return error.code

    assert [None, None, "key-scope"] == [may_read(key) for key in (everything, scraper, single)]
    assert "key-scope" == office.ask(bearer(scraper))


def test_an_expired_key_ends_by_itself(office):
    """From its last moment on it is refused, and the generation rises so that no cache keeps it."""
    key = office.make("guest", expires_ns=NOW + DAY)
    guard = office.open()
    before = guard.generation

    assert ["guest", "key-expired"] == [office.ask(bearer(key), now_ns=NOW + DAY - 1), office.ask(bearer(key), now_ns=NOW + DAY)]
    assert not guard.ring.poll(NOW + DAY - 1)
    assert guard.ring.poll(NOW + DAY)
    assert before < guard.generation
    assert not guard.ring.poll(NOW + DAY + 1)


def test_a_rate_is_kept_and_said(office):
    """Beyond the burst 429 with the seconds to wait; another key is not touched."""
    slow, other = office.make("slow", rate_per_s=0.5, burst=2), office.make("other")
    guard = office.open()
    answers = [office.ask(bearer(slow)) for _ in range(3)] + [office.ask(bearer(other)), office.ask(bearer(slow), now_s=12.1)]
    with pytest.raises(UnavailableError) as raised:
        guard.authorize([bearer(slow)], "churn", now_ns=NOW, now_s=12.1)

    assert ["slow", "slow", "rate-limited", "other", "slow"] == answers
    assert {"retry-after": "2"} == headers_of(raised.value)


def test_without_keys_anybody_asks_until_there_is_one(office):
    """On loopback a server without a key document wants none; from the first document on it does, and never stops."""
    guard = office.open()
    first = guard.identify([("x-api-key", "whatever")], now_ns=NOW)
    key = office.make("shop")
    changed = guard.ring.poll(NOW)
    second = (office.ask(), office.ask(bearer(key)))
    office.path.unlink()
    gone = guard.ring.poll(NOW)

    assert first is ANYBODY
    assert (True, ("key-missing", "shop")) == (changed, second)
    assert (True, "key-missing", "key-unknown") == (gone, office.ask(), office.ask(bearer(key)))


def test_where_others_can_reach_it_a_key_is_required(office):
    """Without any key such a server does not start; with none left it lets nobody in."""
    with pytest.raises(SpecError) as raised:
        office.open(required=True)
    key = office.make("shop")
    guard = office.open(required=True)
    revoke_key(office.path, "shop")
    guard.ring.poll(NOW)

    assert "keys-missing" == raised.value.code
    assert "mulle keys create" in raised.value.fix
    assert "key-unknown" == office.ask(bearer(key))


def test_a_revoked_key_stops_and_the_others_stay(office):
    """One look at the file later it is unknown."""
    first, second = office.make("first"), office.make("second")
    guard = office.open()
    before = guard.generation
    revoke_key(office.path, "first")
    guard.ring.poll(NOW)

    assert ["key-unknown", "second"] == [office.ask(bearer(first)), office.ask(bearer(second))]
    assert before < guard.generation


def test_a_truncated_document_changes_nothing_but_the_error(office):
    """The last good keys go on, the reason is kept for the health page, and a mended file is taken over."""
    key = office.make("shop")
    guard = office.open()
    whole = office.path.read_bytes()
    office.path.write_bytes(whole[: len(whole) // 2])
    changed = guard.ring.poll(NOW)
    broken = (changed, guard.ring.error.code, office.ask(bearer(key)))
    office.path.write_bytes(whole)
    guard.ring.poll(NOW)

    assert (False, "format-unreadable", "shop") == broken
    assert (None, "shop") == (guard.ring.error, office.ask(bearer(key)))


def test_a_document_that_cannot_be_read_stops_the_start(office):
    """A server that does not know whom to let in does not start, and the file stays as it is."""
    office.path.write_bytes(b'{"format": "mulle.api-keys", "ver')
    office.path.chmod(0o600)
    kept, _ = make_key("shop", now_ns=NOW)
    for attempt in (office.open, lambda: add_key(office.path, kept)):
        with pytest.raises(CheckError) as raised:
            attempt()

        assert "format-unreadable" == raised.value.code
    assert office.path.read_bytes().endswith(b'"ver')


def test_a_file_that_others_may_write_is_refused(office):
    """Whoever can write the file can let himself in; reading it gives only hashes away."""
    office.make("shop")
    modes = {}
    for mode in (0o600, 0o644, 0o660, 0o666):
        office.path.chmod(mode)
        try:
            modes[mode] = len(read_keys(office.path))
        except SpecError as error:
            modes[mode] = error.code

    assert {0o600: 1, 0o644: 1, 0o660: "keys-writable", 0o666: "keys-writable"} == modes


def test_only_a_hash_is_kept(office):
    """The file is the owner's alone, and neither the key nor its secret is in it."""
    key = office.make("shop")
    text = office.path.read_text()

    assert 0o600 == office.path.stat().st_mode & 0o777
    assert key not in text
    assert key.split("_")[2] not in text
    assert hash_key(key).hex() in text
    assert 64 == len(key.split("_")[2])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a" * 32, 1, id="a plain key of 32 characters"),
        pytest.param("a" * 32 + "\n", 1, id="with the line break of a file"),
        pytest.param("mk_0123456789ab_" + "c" * 64, 1, id="one of Mulle's own as plain text"),
        pytest.param("secret", "key-weak", id="too short to be random"),
        pytest.param("", "key-weak", id="nothing"),
        pytest.param("x" * 300, "key-weak", id="too long for a header"),
        pytest.param("with blank " * 4, "key-weak", id="blanks"),
        pytest.param("열쇠" * 20, "key-weak", id="no ASCII"),
        pytest.param("mk_nothexnothex_" + "c" * 64, "key-weak", id="the shape of Mulle's own, and none"),
        pytest.param('{"format": "mulle.api-keys", "version": 2}', "format-unknown", id="a newer document"),
        pytest.param(
            '{"format": "mulle.api-keys", "version": 1, "keys": [{"id": "../../etc"}]}', "format-unreadable", id="an id that is a path"
        ),
        pytest.param('{"format": "mulle.api-keys", "version": 1, "keys": []}', 0, id="a document without keys"),
    ],
)
def test_what_a_reference_may_lead_to(text, expected):
    """One long random key as plain text, or a whole document; anything else says what is wrong and not what it read."""
    said = ""
    try:
        found = len(parse_keys(text.encode(), where="env://KEY"))
    except MulleError as error:
        found, said = error.code, str(error)

    assert expected == found
    assert not text or text not in said


def test_a_plain_key_opens_everything():
    """The key an environment names by reference, in the shape of Mulle's own or another."""
    for text in ("f3" * 32, "mk_0123456789ab_" + "c" * 64):
        guard = Guard(KeyRing(KeySource(text=text), required=True, rates=RateTable(None), now_ns=NOW))

        assert "api_key" == guard.authorize([bearer(text)], "any", now_ns=NOW, now_s=1.0).name
        with pytest.raises(SpecError):
            guard.identify([bearer(text[:-1])], now_ns=NOW)


def test_documents_with_doubles_are_refused(office):
    """Two keys of one id or one name: nobody could say which one was meant."""
    office.make("shop")
    document = json.loads(office.path.read_text())
    document["keys"] *= 2
    office.path.write_text(json.dumps(document))
    with pytest.raises(CheckError) as raised:
        read_keys(office.path)

    assert "keys-ambiguous" == raised.value.code


def test_a_read_only_folder_is_said(office, monkeypatch):
    """Where the document cannot be written the error says so, and no draft is left."""
    office.make("shop")

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(api_keys.os, "fsync", full)
    kept, _ = make_key("other", now_ns=NOW)
    with pytest.raises(UnavailableError) as raised:
        add_key(office.path, kept)

    assert "keys-unwritable" == raised.value.code
    assert 1 == len(read_keys(office.path))
    assert {"keys.json", ".keys.json.lock"} == {path.name for path in office.path.parent.iterdir()}


def test_every_refusal_has_a_status():
    """HTTP and gRPC have a word for each of them."""
    assert STATUS_OF_CODE.keys() == GRPC_STATUS_OF_CODE.keys()
