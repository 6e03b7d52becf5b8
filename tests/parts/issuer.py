"""An OpenID Connect issuer that can fail as no healthy one would; a real one is `tests.parts.provider`.

Its attributes and methods set its faults:

    with Issuer() as issuer:
        token = issuer.token(sub="ada")          # signed by `issuer.key`
        issuer.rotate("another")                 # replaces the published key
        issuer.stall = 2.0                       # seconds before each answer
        issuer.says = (500, b"")
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE = "kiln"
KINDS = {"EC": "ES256", "OKP": "EdDSA", "RSA": "RS256"}


@functools.cache
def private_key(name: str) -> Any:
    """The key of that name, whose beginning says its kind; the default is RSA."""
    if name.startswith("EC"):
        return ec.generate_private_key(ec.SECP256R1())
    if name.startswith("OKP"):
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 1024 if name.startswith("small") else 2048)


def algorithm_of(name: str) -> str:
    return next((algorithm for kind, algorithm in KINDS.items() if name.startswith(kind)), "RS256")


def jwk(name: str, **more: object) -> dict[str, Any]:
    """A public key as a key set has it."""
    public = jwt.get_algorithm_by_name(algorithm_of(name)).to_jwk(private_key(name).public_key(), as_dict=True)
    return {"kid": name, "use": "sig", "alg": algorithm_of(name), **public, **more}


def pem(name: str) -> bytes:
    public: bytes = (
        private_key(name)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return public


def segment(data: bytes | Mapping[str, object]) -> str:
    """A part of a JWS."""
    given = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(given).rstrip(b"=").decode()


def hs256(header: Mapping[str, object], claims: Mapping[str, object], secret: bytes) -> str:
    """Signs with any secret: libraries refuse to use a public key as one."""
    signed = f"{segment(header)}.{segment(claims)}"
    return f"{signed}.{segment(hmac.digest(secret, signed.encode(), 'sha256'))}"


class Issuer:
    """`asked` are the paths of requests so far, `keys` the content of its key set, `user` the claims of the user who
    signs in. `path` is a part of its identifier. Discovery includes `metadata`, too."""

    def __init__(self, key: str = "first", *, path: str = "") -> None:
        self.key = key
        self.keys: list[dict[str, Any]] = [jwk(key)]
        self.asked: list[str] = []
        self.bearers: list[str] = []
        self.metadata: dict[str, object] = {}
        self.user: dict[str, object] = {"sub": "ada"}
        self.secret = "a canary of the client"
        self.codes: dict[str, dict[str, str]] = {}
        self.stall = 0.0
        self.trickle = False
        self.says: tuple[int, bytes] | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"issuer": self}))
        self._server.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self.url = self.origin + path

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve_tls(self, context: ssl.SSLContext) -> None:
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.origin = self.url = self.origin.replace("http:", "https:")

    def claims(self, **changes: object) -> dict[str, object]:
        """The claims of a token; `None` leaves a claim out."""
        now = int(time.time())
        usual = {"iss": self.url, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 3600}
        return {name: value for name, value in {**usual, **changes}.items() if value is not None}

    def token(self, *, key: str | None = None, header: Mapping[str, object] | None = None, **claims: object) -> str:
        return self.signed(self.claims(**claims), key=key, header=header)

    def signed(
        self, claims: Mapping[str, object], *, key: str | None = None, header: Mapping[str, object] | None = None
    ) -> str:
        key = key or self.key
        given = {"alg": algorithm_of(key), "kid": key, **(header or {})}
        kept = {name: value for name, value in given.items() if value is not None}
        algorithm = jwt.get_algorithm_by_name(str(given["alg"]))
        signed = f"{segment(kept)}.{segment(claims)}"
        return f"{signed}.{segment(algorithm.sign(signed.encode(), private_key(key)))}"

    def rotate(self, key: str) -> None:
        self.key, self.keys = key, [jwk(key)]

    @property
    def fetches(self) -> int:
        """How often its keys were fetched."""
        return self.asked.count("/keys")

    def discovery(self) -> dict[str, object]:
        endpoints = {name: f"{self.origin}/{name}" for name in ("authorization_endpoint", "token_endpoint")}
        return {"issuer": self.url, "jwks_uri": f"{self.origin}/keys", **endpoints, **self.metadata}

    def sign_in(self, address: str) -> str:
        """The URL to which it redirects a browser that opened this address and passed its pages."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        assert address.startswith(f"{self.origin}/authorization_endpoint?")
        assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
        assert "openid" in asked["scope"].split()
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked
        return f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"

    def redeem(self, form: Mapping[str, str], basic: str) -> tuple[int, dict[str, object]]:
        """RFC 6749, §4.1.3, and RFC 7636, §4.6."""
        asked = self.codes.pop(form["code"], None)
        user, _, secret = base64.b64decode(basic).decode().partition(":")
        given = (unquote_plus(user), unquote_plus(secret)) if basic else (form["client_id"], form.get("client_secret"))
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        if asked is None or asked["redirect_uri"] != form["redirect_uri"] or asked["code_challenge"] != segment(digest):
            return 400, {"error": "invalid_grant"}
        if given != (asked["client_id"], self.secret):
            return 401, {"error": "invalid_client"}
        claims = self.claims(**{"aud": asked["client_id"], "nonce": asked["nonce"], **self.user})
        return 200, {"token_type": "Bearer", "access_token": "opaque", "id_token": self.signed(claims)}


class _Handler(BaseHTTPRequestHandler):
    issuer: Issuer

    def do_GET(self) -> None:
        self.issuer.asked.append(self.path)
        self.issuer.bearers += self.headers.get_all("Authorization", [])
        if self.path.endswith("/.well-known/openid-configuration"):
            self._say(200, self.issuer.discovery())
        elif self.path in ("/keys", "/openid/v1/jwks"):
            self._say(200, {"keys": self.issuer.keys})
        else:
            self._say(404, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.issuer.asked.append(self.path)
        form = {name: values[0] for name, values in parse_qs(body).items()}
        self._say(*self.issuer.redeem(form, self.headers.get("Authorization", "").removeprefix("Basic ")))

    def _say(self, status: int, document: Mapping[str, object]) -> None:
        time.sleep(self.issuer.stall)
        status, body = self.issuer.says or (status, json.dumps(document).encode())
        try:
            self.send_response(status)
            self.send_header("Location", f"{self.issuer.origin}/elsewhere")
            self.end_headers()
            for piece in [body[place : place + 1] for place in range(len(body))] if self.issuer.trickle else [body]:
                self.wfile.write(piece)
                time.sleep(0.1 if self.issuer.trickle else 0)
        except OSError:
            pass  # the client has gone

    def log_message(self, *_: object) -> None:
        pass
