"""What every page is made of: its template, the proof that its forms carry, and cookies that are for us alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from flask import Response, make_response, redirect, render_template, request

from handlers import xsrf
from handlers.auth import Identity
from handlers.problems import Problem
from handlers.services import services

CSRF = "kiln-form"
_STATIC = Path(__file__).parent / "static"


def page(
    template: str,
    identity: Identity | None,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> Response:
    """A page. Its forms and scripts show the session's own token; where there is no session, what a cookie holds."""
    session = identity and identity.session
    admin = identity is not None and identity.admin
    values |= {"by": identity and identity.by, "session": session, "entered": identity is not None, "admin": admin}
    if session:
        wanted = session.xsrf
        html = render_template(template, proof=lambda url: xsrf.form_token(wanted, unquote(url)), **values)
        return make_response(html, status, dict(headers or {}))
    nonce = request.cookies.get(CSRF, "")
    fresh = not re.fullmatch(r"[\w-]{43}", nonce, re.ASCII)
    nonce = secrets.token_urlsafe(32) if fresh else nonce
    html = render_template(template, proof=lambda _: nonce, **values)
    response = make_response(html, status, dict(headers or {}))
    if fresh:
        set_cookie(response, CSRF, nonce, None)
    return response


def for_admins() -> Identity:
    """Who asks for a page that is for admins. Raises Problem 401, 403."""
    identity = services().auth.admit(request)
    if not identity.admin:
        raise Problem(403, "This page is for admins.")
    return identity


@lru_cache
def integrity(name: str) -> str:
    """The digest of a static file, as Subresource Integrity writes it."""
    digest = hashlib.sha384((_STATIC / name).read_bytes()).digest()
    return f"sha384-{base64.b64encode(digest).decode()}"


def check_form(identity: Identity | None = None) -> None:
    """Whether one of our own pages sent the form: it holds what the cookie holds, which no other site can read.

    A session has been asked for more already (`handlers.xsrf`). Raises Problem 403.
    """
    if identity and identity.session:
        return
    nonce, given = request.cookies.get(CSRF, "").encode(), request.form.get(xsrf.FIELD, "").encode()
    if xsrf.foreign_origin(request) or not nonce or not hmac.compare_digest(given, nonce):
        raise Problem(403, "This form has expired. Go back, reload the page and try again.")


def set_cookie(
    response: Response,
    name: str,
    value: str,
    max_age: int | None,
    *,
    samesite: Literal["Strict", "Lax"] = "Strict",
) -> None:
    """`Lax` for what must be there when another site sends the browser here."""
    secure = (services().public_url or "").startswith("https:")
    path = services().base_path
    response.set_cookie(name, value, max_age=max_age, path=path, secure=secure, httponly=True, samesite=samesite)


def to(location: str) -> Response:
    return make_response(redirect(location, 303))
