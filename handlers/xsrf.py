"""Cross-site request forgery: what a request that comes by a browser's cookie has to show besides.

On a Hub, other people's servers may be on our host: `/user/mallory/` is the same origin as we are. A page there sends
our cookies along, may name any `Referer` of the origin, may open our pages in a frame or a window, may move its own
address below our path (and then reads our path's cookies), and may register a service worker for it. None of that may
read or do anything, so:

- Whatever changes something shows a token that is bound to the session. It is in our pages, in no readable cookie.
- Whatever is read shows it too, unless the browser says that it is loading a document into a tab of its own: Fetch
  Metadata cannot be set by a page, and what a service worker fetches has the destination `empty`. A navigation that is
  preloaded for a service worker is handed to it, so it does not count.
- A service worker may answer for our scripts and styles, so a page names their digests (Subresource Integrity). It sees
  the forms that are sent, so each form holds a token that is good for its own address alone.
- A document cannot be framed, and cuts the tie to whoever opened it (`handlers.app.HEADERS`).

Who sends an `Authorization` header needs nothing of this: no browser adds one by itself.

https://www.w3.org/TR/fetch-metadata/, https://html.spec.whatwg.org/multipage/browsers.html#cross-origin-opener-policies,
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
"""The name that JupyterHub's services have for it, as a cookie, an argument of the query and in messages."""
FIELD = "form"
"""Its name in the forms of our pages."""
HEADERS = ("X-Xsrftoken", "X-Csrftoken")
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
DOES_BY_GET = "binderhub.build"
"""The endpoint whose clients have things done by GET."""
FORMS = frozenset({"pages", "signin"})
"""The blueprints whose bodies are forms."""


def token(key: bytes, session: str) -> str:
    """What goes with a session. Hexadecimal: BinderHub's client cuts off a `-`."""
    return hmac.new(key, f"kiln-xsrf\n{session}".encode(), hashlib.sha256).hexdigest()


def form_token(wanted: str, path: str) -> str:
    """What a page's form that goes to `path` holds: whoever sees the form being sent can do no more than that form."""
    return hmac.new(wanted.encode(), f"kiln-form\n{path}".encode(), hashlib.sha256).hexdigest()


def check(request: Request, wanted: str) -> None:
    """Raises Problem 403 for a request by a cookie that another page may have made."""
    if foreign_origin(request):
        raise Problem(403, "This must be asked from Kiln's own pages.")
    if (changes(request) or not _opens_a_page(request)) and not _shows(request, wanted):
        raise Problem(403, f"This must be asked from Kiln's own pages, with their token as X-Xsrftoken or {COOKIE}.")


def changes(request: Request) -> bool:
    """Whether it asks for something to be done: an image on another site's page must not be enough for that."""
    return request.method not in SAFE or (request.method == "GET" and request.endpoint == DOES_BY_GET)


def foreign_origin(request: Request) -> bool:
    """Whether a browser says that another site's page made this request (RFC 6454, §7; Fetch Metadata)."""
    if changes(request) and request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return True  # a link that leads here is no request that changes anything
    origin = request.headers.get("Origin")
    return origin is not None and urlsplit(origin).netloc.lower() != request.host.lower()


def _opens_a_page(request: Request) -> bool:
    """Whether what is read is for a tab of its own, or for a program that is no browser."""
    if "Service-Worker-Navigation-Preload" in request.headers:
        return False
    mode = request.headers.get("Sec-Fetch-Mode")
    if mode is None:  # no browser, or one over plain HTTP: which is believed where no other page shares our origin
        return services().base_path == "/" or "Mozilla/" not in request.headers.get("User-Agent", "")
    return mode == "navigate" and request.headers.get("Sec-Fetch-Dest") == "document"


def _shows(request: Request, wanted: str) -> bool:
    shown = [(request.headers.get(name), wanted) for name in HEADERS]
    shown.append((request.args.get(COOKIE), wanted))  # an EventSource sends no headers
    if request.blueprint in FORMS and request.method == "POST":
        shown.append((request.form.get(FIELD), form_token(wanted, request.path)))
    return any(hmac.compare_digest(each.encode(), right.encode()) for each, right in shown if each)
