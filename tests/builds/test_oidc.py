"""An issuer's tokens: attacks on them, and an issuer that rotates its keys, is unavailable or slow."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.clients import oidc
from builds.clients.oidc import FETCH_BURST, MAX_TOKEN, SKEW, Budget, IssuerAway, OwnCluster, is_own_cluster
from builds.errors import TokenRefused
from tests.parts.authority import make_authority
from tests.parts.issuer import AUDIENCE, Issuer, hs256, jwk, pem, segment
from tests.parts.kiln import until

NAMES = (AUDIENCE, "another of ours")


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as issuer:
        yield issuer


@pytest.fixture
def client(issuer: Issuer) -> oidc.Issuer:
    return oidc.Issuer(issuer.url)


def subject(client: oidc.Issuer, token: str) -> str | None:
    found = client.claims(token, NAMES)
    return None if found is None else found.subject


def refusal(client: oidc.Issuer, token: str) -> str:
    with pytest.raises(TokenRefused) as refused:
        client.claims(token, NAMES)
    assert '"' not in str(refused.value), "it stands in a header"
    return str(refused.value)


class Later(NamedTuple):
    """A time relative to the moment when the token is made."""

    seconds: int


def timed(claims: dict[str, object]) -> dict[str, object]:
    now = int(time.time())
    return {name: now + value.seconds if isinstance(value, Later) else value for name, value in claims.items()}


# Tokens --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["first", "EC", "OKP"])
def test_a_good_token(key: str) -> None:
    with Issuer(key, path="/realms/ours") as issuer:
        client = oidc.Issuer(issuer.url)
        found = client.claims(issuer.token(groups=["staff"]), NAMES)
        assert found is not None
        assert (found.subject, found.all["groups"]) == ("ada", ["staff"])
        assert issuer.asked == ["/realms/ours/.well-known/openid-configuration", "/keys"]


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        ({"alg": "PS256"}, {}),
        ({"alg": "RS512", "kid": None}, {}),
        ({"typ": "at+JWT"}, {"aud": ["x", "another of ours"]}),
        ({}, {"exp": Later(-SKEW // 2)}),
        ({}, {"nbf": Later(SKEW // 2), "iat": Later(SKEW // 2)}),
    ],
)
def test_what_a_good_token_may_be(
    issuer: Issuer, client: oidc.Issuer, header: dict[str, object], claims: dict[str, object]
) -> None:
    issuer.keys = [jwk("first", alg=None)]
    assert subject(client, issuer.token(header=header, **timed(claims))) == "ada"


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"aud": "another"}, "audience"),
        ({"aud": []}, ""),
        ({"aud": None}, "lacks a claim"),
        ({"exp": Later(-SKEW - 30)}, "expired"),
        ({"exp": None}, "lacks a claim"),
        ({"nbf": Later(SKEW + 30)}, "not valid yet"),
        ({"iat": Later(SKEW + 30)}, "not valid yet"),
        ({"sub": None}, "lacks a claim"),
        *(
            ({"sub": odd}, "")
            for odd in ("", " ", "a\n", "a\x00b", " a", "a ", "é", "a\u202eb", "a" * 256, 1, ["a"], {})
        ),
        *(({"exp": odd}, "") for odd in ("soon", [], -1, True)),
    ],
    ids=repr,
)
def test_claims_that_are_not_good(issuer: Issuer, client: oidc.Issuer, claims: dict[str, object], says: str) -> None:
    assert says in refusal(client, issuer.token(**timed(claims)))


@pytest.mark.parametrize(
    "sub", ["system:serviceaccount:ns:a-b", "auth0|5f7c", 'a"b<script>', "x y", "a" * 255, "~", "%0a"]
)
def test_odd_subjects_that_are_what_the_specification_allows(issuer: Issuer, client: oidc.Issuer, sub: str) -> None:
    assert subject(client, issuer.token(sub=sub)) == sub


def test_a_token_of_another_issuer_is_none_of_ours_and_nobody_is_asked(issuer: Issuer, client: oidc.Issuer) -> None:
    for url in ("https://evil.example/", issuer.url + "/", issuer.url.upper()):
        assert client.claims(issuer.token(iss=url), NAMES) is None
    assert issuer.asked == []


def test_algorithms_that_prove_nothing(issuer: Issuer, client: oidc.Issuer) -> None:
    assert subject(client, issuer.token()) == "ada"
    claims = issuer.claims()
    for alg in ("none", "None", "nOnE", ""):
        for kid in ({}, {"kid": "first"}):
            said = refusal(client, f"{segment({'alg': alg, **kid})}.{segment(claims)}.")
            assert "asymmetric" in said
    for secret in (pem("first"), pem("first").strip(), json.dumps(jwk("first")).encode(), b""):
        for alg in ("HS256", "HS384", "HS512"):
            assert "asymmetric" in refusal(client, hs256({"alg": alg, "kid": "first"}, claims, secret))
        assert refusal(client, hs256({"alg": "RS256", "kid": "first"}, claims, secret))


def test_keys_that_a_token_brings_along_or_names_are_not_looked_at(issuer: Issuer, client: oidc.Issuer) -> None:
    """RFC 8725, §3.10."""
    with Issuer("mallory's") as mallory:
        for header in (
            {"jwk": jwk("mallory's")},
            {"jku": f"{mallory.origin}/keys", "kid": "mallory's"},
            {"x5u": f"{mallory.origin}/keys", "kid": "first"},
            {"kid": "../../keys"},
            {"kid": f"{mallory.origin}/keys"},
            {"kid": None},
        ):
            assert refusal(client, issuer.token(key="mallory's", header=header))
        assert mallory.asked == []


@pytest.mark.parametrize(
    "header",
    [{"crit": ["x"], "x": 1}, {"crit": []}, {"typ": "logout+jwt"}, {"typ": "dpop+jwt"}, {"typ": "secevent+jwt"}],
    ids=str,
)
def test_tokens_with_another_purpose(issuer: Issuer, client: oidc.Issuer, header: dict[str, object]) -> None:
    assert "type" in refusal(client, issuer.token(header=header))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: token[:-6] + ("AAAAAA" if not token.endswith("AAAAAA") else "BBBBBB"),
        lambda token: f"{token.rpartition('.')[0]}.",
        lambda token: f"{token.split('.')[0]}.{segment({'iss': token, 'sub': 'root'})}.{token.split('.')[2]}",
    ],
)
def test_a_spoiled_token(issuer: Issuer, client: oidc.Issuer, spoil: Callable[[str], str]) -> None:
    with suppress(TokenRefused):
        assert client.claims(spoil(issuer.token()), NAMES) is None


def test_a_token_that_is_too_large_is_not_looked_at(issuer: Issuer, client: oidc.Issuer) -> None:
    assert client.claims(issuer.token(more="x" * MAX_TOKEN), NAMES) is None
    assert issuer.asked == []


@given(st.one_of(st.text(max_size=200), st.lists(st.binary(max_size=60), min_size=3, max_size=3)))
def test_whatever_is_sent_is_refused_or_nobodys(sent: str | list[bytes]) -> None:
    client = oidc.Issuer("https://issuer.invalid")
    token = sent if isinstance(sent, str) else ".".join(map(segment, sent))
    assert client.claims(token, NAMES) is None


LEAVES = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
JSON = st.recursive(LEAVES, lambda each: st.lists(each, max_size=3))


@given(st.dictionaries(st.sampled_from(["exp", "nbf", "iat", "aud", "sub", "jti", "x"]), JSON))
def test_claims_of_any_kind_are_taken_or_refused(known: tuple[Issuer, oidc.Issuer], claims: dict[str, Any]) -> None:
    issuer, client = known
    try:
        found = client.claims(issuer.token(**claims), NAMES)
    except TokenRefused:
        return
    assert found is not None


@pytest.fixture(scope="module")
def known() -> Iterator[tuple[Issuer, oidc.Issuer]]:
    with Issuer() as issuer:
        yield issuer, oidc.Issuer(issuer.url)


# Keys ----------------------------------------------------------------------------------------------------------------


USELESS: dict[str, tuple[str, dict[str, Any]]] = {
    # description: (the original key, and its changed members)
    "for encryption": ("first", {"use": "enc"}),
    "for other operations": ("first", {"key_ops": ["encrypt"]}),
    "of a symmetric algorithm": ("first", {"alg": "HS256"}),
    "of an algorithm for encryption": ("first", {"alg": "RSA-OAEP"}),
    "with a short modulus": ("first", {"n": "AQAB"}),
    "without a modulus": ("first", {"n": None}),
    "with a number": ("first", {"n": 7}),
    "of 1024 bits": ("small", {}),
    "of another curve": ("EC", {"crv": "P-384"}),
    "symmetric": ("first", {"kty": "oct", "k": "c2VjcmV0"}),
    "of no type": ("first", {"kty": ["RSA"]}),
    "of an unknown type": ("first", {"kty": "XMSS"}),
}


@pytest.mark.parametrize("case", USELESS)
def test_keys_that_sign_no_tokens_are_left_out(issuer: Issuer, case: str) -> None:
    key, said = USELESS[case]
    useless = jwk(key, **said)
    issuer.keys = [useless, jwk("EC")]
    client = oidc.Issuer(issuer.url)
    assert client.reach() == 1
    assert subject(client, issuer.token(key="EC")) == "ada"


def test_a_key_is_good_for_its_own_algorithm(issuer: Issuer, client: oidc.Issuer) -> None:
    assert "publish" in refusal(client, issuer.token(header={"alg": "RS512"}))


def test_a_new_key_is_found_at_once_and_an_old_one_goes_on(issuer: Issuer, client: oidc.Issuer) -> None:
    old = issuer.token()
    assert subject(client, old) == "ada"
    issuer.keys.append(jwk("second"))
    assert subject(client, issuer.token(key="second")) == "ada"
    assert subject(client, old) == "ada"
    assert issuer.fetches == 2


def test_a_key_that_was_withdrawn_is_believed_no_longer_than_said(issuer: Issuer) -> None:
    client = oidc.Issuer(issuer.url, fresh=0.0)
    old = issuer.token()
    assert subject(client, old) == "ada"
    issuer.rotate("second")

    def refused() -> bool:
        try:
            return subject(client, old) is None
        except TokenRefused:
            return True

    until(refused)
    assert subject(client, issuer.token()) == "ada"


def test_unknown_keys_are_refused_and_do_not_have_the_issuer_asked_for_each(
    issuer: Issuer, client: oidc.Issuer
) -> None:
    assert subject(client, issuer.token()) == "ada"
    began = time.monotonic()
    for number in range(40):
        assert "publish" in refusal(client, issuer.token(key="mallory's", header={"kid": f"k-{number}"}))
    assert issuer.fetches <= 1 + FETCH_BURST + (time.monotonic() - began) / oidc.FETCH_PERIOD + 1
    assert subject(client, issuer.token()) == "ada"


def test_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(oidc.time, "monotonic", lambda: now)
    budget = Budget(2, 10.0)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    now += 10.0
    assert [budget.take() for _ in range(2)] == [True, False]
    now += 1000.0
    assert [budget.take() for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    "answer",
    [
        (500, b""),
        (302, b""),
        (404, b""),
        (403, b""),
        (200, b""),
        (200, b"<html>"),
        (200, b'{"keys": []}'),
        (200, b"[" * 100_000),
        (200, b" " * (oidc.MAX_RESPONSE + 1)),
    ],
    ids=lambda answer: f"{answer[0]}-{answer[1][:12]!r}",
)
def test_an_issuer_that_does_not_say(issuer: Issuer, client: oidc.Issuer, answer: tuple[int, bytes]) -> None:
    issuer.says = answer
    with pytest.raises(IssuerAway):
        client.claims(issuer.token(), NAMES)
    assert not any("elsewhere" in path for path in issuer.asked), "no redirect is followed"
    with pytest.raises(IssuerAway):
        client.claims(issuer.token(), NAMES)
    assert len(issuer.asked) == 1, "it is left alone for a moment"


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://another.example"},
        {"issuer": None},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "ftp://x/"},
        {"jwks_uri": "https:///keys"},
        {"jwks_uri": ["x"]},
        {"token_endpoint": "javascript:1"},
    ],
    ids=str,
)
def test_a_discovery_document_that_is_wrong(issuer: Issuer, client: oidc.Issuer, metadata: dict[str, object]) -> None:
    issuer.metadata = metadata
    with pytest.raises(IssuerAway):
        client.claims(issuer.token(), NAMES)
    assert issuer.fetches == 0


def test_known_keys_go_on_while_the_issuer_is_away(issuer: Issuer) -> None:
    client = oidc.Issuer(issuer.url, fresh=0.0)
    assert subject(client, issuer.token()) == "ada"
    for away in ((503, b""), (200, b'{"keys": []}'), (200, b"{}")):
        issuer.says = away
        with pytest.raises(IssuerAway):
            client.claims(issuer.token(key="second"), NAMES)
        for _ in range(3):
            assert subject(client, issuer.token()) == "ada"
    issuer.says = None
    issuer.keys.append(jwk("second"))

    def back() -> bool:
        try:
            return subject(client, issuer.token(key="second")) == "ada"
        except IssuerAway:
            return False

    until(back)


@pytest.mark.parametrize("slow", [{"stall": 60.0}, {"trickle": True}], ids=str)
def test_a_slow_issuer_keeps_nobody_but_those_who_need_it(issuer: Issuer, slow: dict[str, Any]) -> None:
    client = oidc.Issuer(issuer.url, limit=1.0, max_waiting=4)
    assert subject(client, issuer.token()) == "ada"
    for name, value in slow.items():
        setattr(issuer, name, value)
    asked = len(issuer.asked)
    ended = threading.Event()

    def stranger(number: int) -> str:
        with pytest.raises(IssuerAway) as away:
            client.claims(issuer.token(key="mallory's", header={"kid": f"k-{number}"}), NAMES)
        ended.set()
        return str(away.value)

    with ThreadPoolExecutor(12) as strangers:
        said = [strangers.submit(stranger, number) for number in range(12)]
        until(lambda: len(issuer.asked) > asked)
        served = 0
        while not ended.is_set() or not served:
            assert subject(client, issuer.token()) == "ada"
            served += 1
        answers = [each.result(30) for each in said]
    assert sum("Too many" in answer for answer in answers) >= 12 - 4 - 4, "no more wait than may"
    assert issuer.asked[asked:].count("/.well-known/openid-configuration") <= 3, "one request for all who wait"


# The cluster's issuer ------------------------------------------------------------------------------------------------


def test_which_issuers_are_the_clusters_own() -> None:
    for host in ("kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "kubernetes.default.svc.example"):
        assert is_own_cluster(f"https://{host}")
        assert is_own_cluster(f"https://{host}:443/")
    for host in (
        "kubernetes.default.svc@evil.example",
        "kubernetes.default.svcx",
        "evil.example/kubernetes.default.svc",
    ):
        assert not is_own_cluster(f"https://{host}")


def test_the_clusters_own_is_asked_with_the_pods_token_and_authority(tmp_path: Path) -> None:
    make_authority(tmp_path, "IP:127.0.0.1")
    (tmp_path / "token").write_text("the pod's\n")
    with Issuer() as issuer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "host.pem", tmp_path / "host.key")
        issuer.serve_tls(context)
        client = oidc.Issuer(issuer.url, own_cluster=OwnCluster(ca=tmp_path / "ca.pem", token=tmp_path / "token"))
        assert subject(client, issuer.token()) == "ada"
        assert issuer.asked == ["/openid/v1/jwks"]
        assert issuer.bearers == ["Bearer the pod's"]
        with pytest.raises(IssuerAway):
            oidc.Issuer(issuer.url).claims(issuer.token(), NAMES)
