"""Cross-site request forgery: the additional proof of a request with a browser's cookie.

Below a Hub, the servers of other users may share our host: `/user/mallory/` has the same origin. A page there can send
our cookies and forge any `Referer` of the origin. It can open our pages in a frame or a window and
register a service worker. It can move its own address below our path, and then read our path's cookies. None of that
may read or change anything:

- Every change shows a token that is bound to the session. The token is in our pages, not in a readable cookie.
- Every read shows it too, unless the browser reports that it loads a document into a tab of its own. A page cannot set
  Fetch Metadata, and the requests of a service worker have the destination `empty`. A navigation that is preloaded for
  a service worker does not count, because the worker receives it.
- A service worker may answer for our scripts and styles, so a page names their digests (Subresource Integrity). The
  worker sees submitted forms, so each form holds a token that is valid for its own URL only.
- A document cannot be framed, and severs the link to its opener (`handlers.app.HEADERS`).

A request with an `Authorization` header needs none of this: no browser adds one by itself.

https://www.w3.org/TR/fetch-metadata/,
https://html.spec.whatwg.org/multipage/browsers.html#cross-origin-opener-policies,
https://www.w3.org/TR/SRI/
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from flask import Request

from handlers.problems import Problem
from handlers.services import services

COOKIE = "_xsrf"
"""The name that JupyterHub's services use for it: as a cookie, an argument of the query and in messages."""
FIELD = "form"
"""Its name in the forms of our pages."""
HEADERS = ("X-Xsrftoken", "X-Csrftoken")
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
DOES_BY_GET = "binderhub.build"
"""The endpoint whose clients change state by GET."""
FORMS = frozenset({"pages", "signin"})
"""The blueprints whose bodies are forms."""


def token(key: bytes, session: str) -> str:
    """Return the token of a session. Hexadecimal: BinderHub's client cuts off a `-`."""
    return hmac.new(key, f"kiln-xsrf\n{session}".encode(), hashlib.sha256).hexdigest()


def form_token(wanted: str, path: str) -> str:
    """Return the token of a page's form for `path`: an observer of the form can repeat only that form."""
    return hmac.new(wanted.encode(), f"kiln-form\n{path}".encode(), hashlib.sha256).hexdigest()


def check(request: Request, wanted: str) -> None:
    """Raise Problem 403 for a request with a cookie that another page may have sent."""
    if foreign_origin(request):
        raise Problem(403, "Send this request from Kiln's own pages.")
    if (changes(request) or not _opens_a_page(request)) and not _shows(request, wanted):
        raise Problem(403, f"Send this request from Kiln's own pages, with their token as X-Xsrftoken or {COOKIE}.")


def changes(request: Request) -> bool:
    """Return whether the request changes state: an image on another site's page must not suffice for that."""
    return request.method not in SAFE or (request.method == "GET" and request.endpoint == DOES_BY_GET)


def foreign_origin(request: Request) -> bool:
    """Return whether a browser reports that another site's page sent this request (RFC 6454, §7; Fetch Metadata)."""
    if changes(request) and request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return True  # a link to here is not a request that changes state
    origin = request.headers.get("Origin")
    return origin is not None and urlsplit(origin).netloc.lower() != request.host.lower()


def _opens_a_page(request: Request) -> bool:
    """Return whether the browser loads a tab of its own, or the client is not a browser."""
    if "Service-Worker-Navigation-Preload" in request.headers:
        return False
    mode = request.headers.get("Sec-Fetch-Mode")
    if mode is None:  # not a browser, or one over plain HTTP: accepted if no other page shares our origin
        return services().base_path == "/" or "Mozilla/" not in request.headers.get("User-Agent", "")
    return mode == "navigate" and request.headers.get("Sec-Fetch-Dest") == "document"


def _shows(request: Request, wanted: str) -> bool:
    shown = [(request.headers.get(name), wanted) for name in HEADERS]
    shown.append((request.args.get(COOKIE), wanted))  # an EventSource sends no headers
    if request.blueprint in FORMS and request.method == "POST":
        shown.append((request.form.get(FIELD), form_token(wanted, request.path)))
    return any(hmac.compare_digest(each.encode(), right.encode()) for each, right in shown if each)
