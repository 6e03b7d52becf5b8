"""A transport adapter for requests that calls a WSGI application in this process, in place of a server.

So a command without a server uses the same client, API and policy as with one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict
from werkzeug.test import EnvironBuilder, run_wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


class WSGIAdapter(BaseAdapter):
    """Passes on each piece of a response as the application yields it, so that a client can follow a log.

    Calls `check` before each request.
    """

    def __init__(self, app: WSGIApplication, check: Callable[[], None]) -> None:
        super().__init__()
        self._app, self._check = app, check

    def send(  # noqa: PLR0917  (the signature of requests)
        self,
        request: requests.PreparedRequest,
        stream: bool = False,  # noqa: ARG002
        timeout: object = None,  # noqa: ARG002
        verify: bool | str = True,  # noqa: ARG002
        cert: object = None,  # noqa: ARG002
        proxies: Mapping[str, str] | None = None,  # noqa: ARG002
    ) -> requests.Response:
        self._check()
        builder = EnvironBuilder(
            path=request.path_url,
            base_url=str(request.url).removesuffix(request.path_url),
            method=request.method or "GET",
            headers=[*request.headers.items()],
            data=request.body,
        )
        try:
            chunks, status, headers = run_wsgi_app(self._app, builder.get_environ())
        finally:
            builder.close()
        answer = requests.Response()
        code, _, answer.reason = status.partition(" ")
        answer.status_code = int(code)
        answer.headers = CaseInsensitiveDict(headers.items())
        answer.url, answer.request = str(request.url), request
        answer.raw = _Body(chunks)
        return answer

    def close(self) -> None:
        """Does nothing: no connection exists."""


class _Body:
    """A response body with the methods of urllib3 that requests calls."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks

    def stream(self, _size: int | None = None, *, decode_content: bool = True) -> Iterator[bytes]:  # noqa: ARG002
        yield from self._chunks

    def close(self) -> None:
        close = getattr(self._chunks, "close", None)
        if close:
            close()

    release_conn = close
