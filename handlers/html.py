"""HTML responses: rendered templates, the tokens of their forms, and cookies for the base path."""

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
    """Render a template whose forms send the session's token; without a session they send the value of a cookie."""
    session = identity and identity.session
    admin = identity is not None and identity.admin
    values |= {"user": identity and identity.by, "session": session, "signed_in": identity is not None, "admin": admin}
    if session:
        token = session.xsrf
        html = render_template(template, form_token=lambda url: xsrf.form_token(token, unquote(url)), **values)
        return make_response(html, status, dict(headers or {}))
    nonce = request.cookies.get(CSRF, "")
    is_new = not re.fullmatch(r"[\w-]{43}", nonce, re.ASCII)
    nonce = secrets.token_urlsafe(32) if is_new else nonce
    html = render_template(template, form_token=lambda _: nonce, **values)
    response = make_response(html, status, dict(headers or {}))
    if is_new:
        set_cookie(response, CSRF, nonce, None)
    return response


def admit_admin() -> Identity:
    """Return the identity of an admin. Raises Problem 401, 403."""
    identity = services().auth.admit(request)
    if not identity.admin:
        raise Problem(403, "This page is for admins.")
    return identity


@lru_cache
def integrity(name: str) -> str:
    """Return the digest of a static file for the attribute `integrity` (W3C Subresource Integrity)."""
    digest = hashlib.sha384((_STATIC / name).read_bytes()).digest()
    return f"sha384-{base64.b64encode(digest).decode()}"


def check_form(identity: Identity | None = None) -> None:
    """Check that a page of Kiln sent the form: it contains the value of a cookie, which no other site can read.

    `handlers.xsrf` has already checked the request of a session. Raises Problem 403.
    """
    if identity and identity.session:
        return
    nonce, sent = request.cookies.get(CSRF, "").encode(), request.form.get(xsrf.FIELD, "").encode()
    if xsrf.foreign_origin(request) or not nonce or not hmac.compare_digest(sent, nonce):
        raise Problem(403, "This form has expired. Go back, reload the page and try again.")


def set_cookie(
    response: Response,
    name: str,
    value: str,
    max_age: int | None,
    *,
    samesite: Literal["Strict", "Lax"] = "Strict",
) -> None:
    """Set a cookie for the base path. A redirect from another site needs one with `Lax`. `max_age` is seconds."""
    secure = (services().public_url or "").startswith("https:")
    path = services().base_path
    response.set_cookie(name, value, max_age=max_age, path=path, secure=secure, httponly=True, samesite=samesite)


def see_other(location: str) -> Response:
    return make_response(redirect(location, 303))
