"""Web pages of other origins: who may read answers, and that nobody may by default."""

import pytest

from mulle.core.errors import SpecError
from mulle.serve.http.cors import NO_CORS, cors_headers, cors_lines, cors_policy, is_allowed, preflight
from mulle.serve.http.messages import Request

SHOP = "https://shop.example.com"
ASKED = {"origin": SHOP, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}


def options(headers, method="OPTIONS", path="/predict"):
    return Request(method, path, "", headers, b"")


@pytest.mark.parametrize(
    ("origins", "origin", "expected"),
    [
        pytest.param([SHOP], SHOP, True, id="named"),
        pytest.param([SHOP, "http://localhost:3000"], "http://localhost:3000", True, id="one of two, with its port"),
        pytest.param(["http://[::1]:3000"], "http://[::1]:3000", True, id="an address"),
        pytest.param(["*"], "https://anybody.net", True, id="everybody"),
        pytest.param([], SHOP, False, id="nobody is named"),
        pytest.param([SHOP], "http://shop.example.com", False, id="another scheme"),
        pytest.param([SHOP], "https://shop.example.com:8443", False, id="another port"),
        pytest.param([SHOP], "https://shop.example.com.evil.net", False, id="a longer name"),
        pytest.param([SHOP], "https://evil-shop.example.com", False, id="a name that ends the same"),
        pytest.param([SHOP], "https://SHOP.example.com", False, id="browsers never spell it so"),
        pytest.param([SHOP], "null", False, id="a page without an origin"),
        pytest.param([SHOP], f"{SHOP}, https://evil.net", False, id="two at once"),
        pytest.param([SHOP], "", False, id="empty"),
    ],
)
def test_an_origin_is_allowed_when_it_is_named_exactly(origins, origin, expected):
    """Scheme, name and port; headers and check agree."""
    policy = cors_policy(origins)
    headers = cors_headers(policy, origin)

    assert expected == is_allowed(policy, origin)
    assert ({"*": "*"}.get(next(iter(origins), ""), origin) if expected else None) == headers.get("access-control-allow-origin")


@pytest.mark.parametrize(
    ("origins", "credentials", "code"),
    [
        pytest.param(["*"], True, "cors-wildcard", id="everybody with passwords"),
        pytest.param(["*", SHOP], False, "cors-wildcard", id="everybody and one more"),
        pytest.param(["https://*.example.com"], False, "cors-origin", id="a pattern"),
        pytest.param(["shop.example.com"], False, "cors-origin", id="no scheme"),
        pytest.param([f"{SHOP}/"], False, "cors-origin", id="a path"),
        pytest.param([f"{SHOP}:443"], False, "cors-origin", id="a port browsers leave out"),
        pytest.param(["https://Shop.example.com"], False, "cors-origin", id="upper case"),
        pytest.param(["https://user@shop.example.com"], False, "cors-origin", id="a user"),
        pytest.param(["https://shop.example.com:x"], False, "cors-origin", id="a port that is none"),
        pytest.param(["https://상점.example"], False, "cors-origin", id="not as browsers send it"),
        pytest.param(["https://a\r\nx: y"], False, "cors-origin", id="a line break"),
        pytest.param(["null"], False, "cors-origin", id="null stands for every sandbox"),
        pytest.param([""], False, "cors-origin", id="nothing"),
    ],
)
def test_what_would_allow_more_than_it_says_is_refused(origins, credentials, code):
    """At start, not at the first attack."""
    with pytest.raises(SpecError) as caught:
        cors_policy(origins, credentials=credentials)

    assert code == caught.value.code


def test_without_origins_nothing_is_added():
    """The default costs nothing and answers no preflight."""
    assert {} == dict(cors_headers(NO_CORS, SHOP))
    assert preflight(NO_CORS, options(ASKED)) is None
    assert cors_lines(NO_CORS) is None


def test_answers_that_depend_on_the_origin_say_so():
    """Also those to no page and to a page that is not allowed: caches must not mix them up."""
    policy = cors_policy([SHOP], credentials=True)
    mine = cors_headers(policy, SHOP)

    assert ["Origin"] * 3 == [cors_headers(policy, origin)["vary"] for origin in (SHOP, None, "https://evil.net")]
    assert "true" == mine["access-control-allow-credentials"]
    assert "mulle-prediction-id" in mine["access-control-expose-headers"]
    assert {"access-control-allow-origin", "vary"} & cors_headers(policy, "https://evil.net").keys() == {"vary"}
    assert "vary" not in cors_headers(cors_policy(["*"]), SHOP)


def test_the_lines_of_a_connection_are_the_headers():
    """Each ended by CRLF; None for an origin that is not allowed."""
    policy = cors_policy([SHOP])
    lines = cors_lines(policy)

    assert dict(cors_headers(policy, SHOP)) == dict(line.split(": ", 1) for line in lines(SHOP).split("\r\n") if line)
    assert lines(SHOP).endswith("\r\n")
    assert lines("https://evil.net") is None


def test_a_preflight_is_answered_without_touching_anything():
    """It names methods and headers, keeps for a while, and has no body."""
    answer = preflight(cors_policy([SHOP]), options(ASKED))

    assert (200, b"") == (answer.status, answer.body)
    assert SHOP == answer.headers["access-control-allow-origin"]
    assert {"GET", "HEAD", "POST"} == set(answer.headers["access-control-allow-methods"].split(", "))
    assert {"content-type", "authorization", "x-api-key", "mulle-prediction-id"} <= set(
        answer.headers["access-control-allow-headers"].split(", ")
    )
    assert "Origin" in answer.headers["vary"]


def test_a_preflight_of_a_stranger_is_refused():
    """In the one shape of errors, and without allowing it to be read."""
    answer = preflight(cors_policy([SHOP]), options(ASKED | {"origin": "https://evil.net"}))

    assert 403 == answer.status
    assert b"http-origin-refused" in answer.body
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(options(ASKED, method="POST"), id="another method"),
        pytest.param(options({"origin": SHOP}), id="no method asked for"),
        pytest.param(options({"access-control-request-method": "POST"}), id="no origin"),
    ],
)
def test_what_is_no_preflight_is_left_to_the_routes(request_):
    """A plain OPTIONS is answered like every other method a route does not take."""
    assert preflight(cors_policy([SHOP]), request_) is None
