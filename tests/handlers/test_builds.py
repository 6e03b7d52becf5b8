"""The JSON API: requests, reads, cancellations, and every refusal with its status and a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from werkzeug.test import TestResponse

from builds.build import Build, Delivery, DeliveryState, State
from builds.engines import Submission, paging
from builds.transitions import change
from handlers.auth import Gate
from tests.handlers.harness import COMMIT, PREFIX, REPOSITORY, TOKENS, Harness, Named, bearer, body, event, push, signed
from tests.parts.githost import GitHost


def test_asking_answers_with_the_build_and_where_it_is(harness: Harness) -> None:
    answer = harness.client.post("/api/v1/builds", json=body(subdir="course/", tags=["latest"], force=False))
    assert answer.status_code == 202
    assert answer.mimetype == "application/json"
    build = answer.json
    assert answer.headers["Location"] == f"/api/v1/builds/{build['name']}"
    assert (build["state"], build["repository"], build["commit"]) == ("queued", REPOSITORY, COMMIT)
    assert build["log"]["url"] == f"/api/v1/builds/{build['name']}/log"
    again = harness.client.get(answer.headers["Location"])
    assert again.json == build
    assert "Set-Cookie" not in again.headers


def test_two_spellings_are_one_build(harness: Harness) -> None:
    names = {
        harness.ask(repository=url).name
        for url in ("https://github.com/Octo/Stats.git", "https://GitHub.com/octo/stats/")
    }
    assert len(names) == 1


def test_null_stands_for_absent(harness: Harness) -> None:
    absent = dict.fromkeys(("ref", "subdir", "build_args", "image", "tags", "force"))
    assert harness.ask(**absent).name == harness.ask().name


def test_a_ref_is_looked_up_at_a_real_host(harnesses: Callable[..., Harness], tmp_path: Path) -> None:
    with GitHost(tmp_path / "git") as host:
        content = tmp_path / "content"
        content.mkdir()
        (content / "README.md").write_text("hello")
        head = host.create("team/course", content)
        harness = harnesses(allowed=[f"{host.base}/**"])
        answer = harness.client.post("/api/v1/builds", json={"repository": host.url("team/course"), "ref": "main"})
        assert answer.status_code == 202, answer.text
        assert (answer.json["commit"], answer.json["ref"]) == (head, "refs/heads/main")
        answer = harness.client.post("/api/v1/builds", json={"repository": host.url("team/course"), "ref": "nowhere"})
        assert answer.status_code == 422
        assert "nowhere" in answer.json["detail"]
    answer = harness.client.post("/api/v1/builds", json={"repository": host.url("team/course"), "ref": "main"})
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"x"', 400),
        (b"\xff", 400),
        (b"[" * 100_000, 400),
        (b'{"repository": NaN}', 400),
        (b'{"repository": "https://github.com/a/b", "commit": 1' + b"0" * 5000 + b"}", 400),
        (json.dumps({}).encode(), 400),
        (json.dumps(body(repository=["x"])).encode(), 400),
        (json.dumps(body(force="yes")).encode(), 400),
        (json.dumps(body(unknown=1)).encode(), 400),
        (json.dumps(body(build_args={"A": 1})).encode(), 400),
        (json.dumps(body(tags="latest")).encode(), 400),
        (json.dumps(body(repository="https://github.com/a/b\n")).encode(), 400),
        (json.dumps(body(repository="https://github.com/a/\u0000b")).encode(), 400),
        (json.dumps(body(repository="--upload-pack=touch")).encode(), 400),
        (json.dumps(body(commit="HEAD")).encode(), 400),
        (json.dumps(body(commit=None, ref="-x")).encode(), 400),
        (json.dumps(body(commit=None, ref="a\nb")).encode(), 400),
        (json.dumps(body(subdir="../..")).encode(), 400),
        (json.dumps(body(subdir="/etc")).encode(), 400),
        (json.dumps(body(repository="file:///etc")).encode(), 422),
        (json.dumps(body(repository="http://169.254.169.254/latest")).encode(), 422),
        (json.dumps(body(repository="https://2130706433/a/b")).encode(), 422),
        (json.dumps(body(image="elsewhere.example/x")).encode(), 403),
        (b"x" * (2**20 + 1), 413),
    ],
)
def test_what_is_refused_starts_nothing(harness: Harness, data: bytes, status: int) -> None:
    answer = harness.client.post("/api/v1/builds", data=data, content_type="application/json")
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/problem+json"
    assert (answer.json["status"], answer.json["type"]) == (status, "about:blank")
    assert answer.json["detail"].strip()
    assert not harness.builds()


def test_an_address_with_a_password_is_refused_without_repeating_it(harness: Harness) -> None:
    answer = harness.client.post("/api/v1/builds", json=body(repository="https://ada:canary@github.com/a/b"))
    assert answer.status_code in (400, 422)
    assert "canary" not in answer.text


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_could_send_is_415(harness: Harness, kind: str) -> None:
    answer = harness.client.post("/api/v1/builds", data=json.dumps(body()), content_type=kind)
    assert answer.status_code == 415
    assert not harness.builds()


def test_a_list_is_paged_newest_first(harness: Harness) -> None:
    names = [harness.ask(subdir=str(number)).name for number in range(5)]
    seen: list[str] = []
    query = "?limit=2"
    while True:
        answer = harness.client.get(f"/api/v1/builds{query}").json
        seen += [item["name"] for item in answer["items"]]
        assert all("tail" not in item["log"] for item in answer["items"])
        if answer["continue"] is None:
            break
        query = f"?limit=2&continue={answer['continue']}"
    assert seen == names[::-1]


def listed(harness: Harness, query: str, who: str = "ci") -> tuple[int, str | None]:
    answer = harness.client.get(f"/api/v1/builds?limit=1{query}", headers=bearer(who))
    return answer.status_code, answer.json.get("continue")


def test_a_cursor_is_good_for_its_own_list_only(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth=("token",))
    for number in range(3):
        assert harness.client.post("/api/v1/builds", json=body(subdir=f"{number}"), headers=bearer()).status_code == 202
    status, cursor = listed(harness, "")
    assert (status, listed(harness, f"&continue={cursor}")[0]) == (200, 200)
    assert cursor
    for query, who in [
        (f"&continue={cursor}", "second"),
        (f"&continue={cursor}&state=queued", "ci"),
        (f"&continue={cursor}&repository={REPOSITORY}", "ci"),
        (f"&continue={cursor.swapcase()}", "ci"),
        (f"&continue={paging.cursor((2**60, 'build-x'))}", "ci"),
    ]:
        assert listed(harness, query, who)[0] == 400, query


def test_a_cursor_lasts_as_long_as_a_secret_that_all_replicas_have(harnesses: Callable[..., Harness]) -> None:
    keys = [b"one"]
    harness, replica = harnesses(cursor_keys=lambda: [b"one"]), harnesses(cursor_keys=lambda: keys)
    for number in range(3):
        harness.ask(subdir=f"{number}")
    path = f"/api/v1/builds?continue={harness.client.get('/api/v1/builds?limit=1').json['continue']}"
    assert replica.client.get(path).status_code == 200
    keys[:] = [b"another", b"one"]
    assert replica.client.get(path).status_code == 200
    keys[:] = [b"another"]
    assert replica.client.get(path).status_code == 400


def test_a_list_is_filtered(harness: Harness) -> None:
    mine = harness.ask()
    harness.ask(repository="https://github.com/octo/other")
    spelled = harness.client.get("/api/v1/builds", query_string={"repository": "https://GitHub.com/Octo/stats.git"})
    assert [item["name"] for item in spelled.json["items"]] == [mine.name]
    harness.run(mine.name)
    assert [item["name"] for item in harness.client.get("/api/v1/builds?state=running").json["items"]] == [mine.name]
    assert not harness.client.get("/api/v1/builds?state=failed").json["items"]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=-1",
        "limit=٣",
        "state=nonsense",
        "continue=x",
        "continue=\x00",
        "repository=a",
    ],
)
def test_a_malformed_query_is_400(harness: Harness, query: str) -> None:
    answer = harness.client.get(f"/api/v1/builds?{query}")
    assert answer.status_code == 400
    assert answer.mimetype == "application/problem+json"


@pytest.mark.parametrize(
    "path", ["/api/v1/builds/none", "/api/v1/builds/none/log", "/nowhere", "/api/v1/builds/..%2f..%2fetc"]
)
def test_what_is_not_there_is_404(harness: Harness, path: str) -> None:
    answer = harness.client.get(path)
    assert answer.status_code == 404
    assert answer.mimetype == "application/problem+json"


def test_cancelling_leaves_a_mark_until_the_build_has_ended(harness: Harness) -> None:
    build = harness.ask()
    path = f"/api/v1/builds/{build.name}"
    assert harness.client.delete(path).status_code == 202
    assert harness.engine.get(build.name).cancel is not None
    harness.run(build.name)
    harness.end(build.name)
    answer = harness.client.delete(path)
    assert answer.status_code == 409
    assert answer.mimetype == "application/problem+json"
    assert harness.client.delete("/api/v1/builds/none").status_code == 404


def again(harness: Harness, name: str, **more: object) -> TestResponse:
    return harness.client.post(f"/api/v1/builds/{name}/rebuild", **{"json": {}, **more})  # type: ignore[arg-type]


def test_a_rebuild_is_of_the_same_request(harness: Harness) -> None:
    wanted = {"subdir": "{course}", "build_args": {"A": "{x} }"}, "image": f"{PREFIX}courses/stats"}
    build = harness.ask(**wanted, ref="refs/heads/main", tags=["main", "latest"])
    harness.ask(**wanted, tags=["pinned"])
    harness.run(build.name)
    harness.end(build.name)
    answer = again(harness, build.name)
    assert (answer.status_code, answer.headers["Location"]) == (202, f"/api/v1/builds/{build.name}")
    assert (answer.json["name"], answer.json["state"], answer.json["attempt"]) == (build.name, "queued", 2)
    assert "{x} }" not in answer.text, "a build argument may be a secret"
    assert harness.engine.get(build.name).request.build_args == {"A": "{x} }"}
    assert [(cause["ref"], cause["tags"]) for cause in answer.json["causes"][2:]] == [
        ("refs/heads/main", ["main", "latest"]),
        (None, ["pinned"]),
    ]
    assert all(cause.force for cause in harness.engine.get(build.name).unanswered)


def test_a_rebuild_joins_a_build_that_is_under_way(harness: Harness) -> None:
    build = harness.run(harness.ask().name)
    answer = again(harness, build.name)
    assert (answer.status_code, answer.json["state"], answer.json["attempt"]) == (202, "running", 1)


def test_a_rebuild_has_an_empty_object_for_its_body(harness: Harness) -> None:
    name = harness.ask().name
    assert again(harness, name, json={"tags": ["x"]}).status_code == 400
    assert again(harness, name, json=None, data=b"", content_type="text/plain").status_code == 415
    assert again(harness, "none").status_code == 404
    assert len(harness.engine.get(name).causes) == 1


def test_who_may_not_choose_rebuilds_what_they_could_ask_for(harnesses: Callable[..., Harness]) -> None:
    somebody = Named("token:ci", admin=True)
    harness = harnesses(auth_gate=Gate((somebody,)))
    tagged, chosen = harness.ask(tags=["latest"]), harness.ask(image=f"{PREFIX}courses/stats")
    for build in (tagged, chosen):
        harness.run(build.name)
        harness.end(build.name, state=State.FAILED)
    somebody.by, somebody.admin = "user:ada", False
    assert again(harness, tagged.name).json["causes"][1]["tags"] == []
    refused = again(harness, chosen.name)
    assert (refused.status_code, "image" in refused.json["detail"]) == (403, True)
    harness.run(tagged.name)
    harness.end(tagged.name, attempt=1)
    assert again(harness, tagged.name).status_code == 403


def test_a_rebuild_of_a_fork_s_build_stays_a_stranger_s(harness: Harness) -> None:
    build = harness.ask(ref="refs/pull/1/head")
    foreign = change(build.causes[0], foreign=True, head="refs/heads/x", tags=("pr-1",))
    (made,) = harness.engine.accept([Submission(name=f"{build.name}x", request=build.request, cause=foreign)])
    assert again(harness, made.name).status_code == 202
    cause = harness.engine.get(build.name).causes[-1]
    assert (cause.foreign, cause.head, cause.tags, cause.credentials) == (True, "refs/heads/x", ("pr-1",), False)


def told(harness: Harness) -> Build:
    """A build that has ended, whose last event the sink `hub` has refused."""
    build = harness.run(harness.ask().name)
    refused = Delivery(
        sink="hub", event="e", type="t", state=DeliveryState.DEAD, due_at=harness.services.now(), error="no"
    )
    return harness.end(build.name, deliveries=(refused,))


def test_the_last_event_is_sent_again(harness: Harness) -> None:
    waiting = harness.ask(subdir="waiting")
    build = told(harness)

    def again(name: str, asked: object) -> int:
        return harness.client.post(f"/api/v1/builds/{name}/resend", json=asked).status_code

    assert again(build.name, {"sink": "hub"}) == 202
    assert harness.engine.get(build.name).resending == ("hub",)
    assert again(build.name, {"sink": "other"}) == 409
    assert again(waiting.name, {"sink": "hub"}) == 409
    assert again("none", {"sink": "hub"}) == 404
    for wrong in ({}, [], {"sink": 1}, {"sink": "hub", "more": 1}, "hub"):
        assert again(build.name, wrong) == 400


def test_only_an_admin_sends_again(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth_gate=Gate((Named("user:ada"),)))
    build = told(harness)
    answer = harness.client.post(f"/api/v1/builds/{build.name}/resend", json={"sink": "hub"})
    assert answer.status_code == 403
    assert harness.engine.get(build.name).resending == ()
    assert "Send again" not in harness.client.get(f"/builds/{build.name}", headers={"Accept": "text/html"}).text


def test_who_is_no_admin_cancels_only_what_is_theirs_alone(harnesses: Callable[..., Harness]) -> None:
    somebody = Named("user:ada")
    harness = harnesses(auth_gate=Gate((somebody,)))
    build = harness.ask()
    somebody.by = "user:bob"
    assert harness.client.delete(f"/api/v1/builds/{build.name}").status_code == 403
    harness.ask()
    assert harness.client.delete(f"/api/v1/builds/{build.name}").status_code == 403
    assert harness.engine.get(build.name).cancel is None
    somebody.by = "user:ada"
    mine = harness.ask(subdir="mine")
    assert harness.client.delete(f"/api/v1/builds/{mine.name}").status_code == 202


def test_too_many_of_one_asker_are_429(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth_gate=Gate((Named("user:ada"),)))
    for number in range(20):
        harness.ask(subdir=str(number))
    answer = harness.client.post("/api/v1/builds", json=body(subdir="one more"))
    assert answer.status_code == 429
    assert answer.headers["Retry-After"]


def test_the_base_path_is_in_every_location(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(base_path="/services/binder/")
    answer = harness.client.post("/services/binder/api/v1/builds", json=body())
    name = answer.json["name"]
    assert answer.headers["Location"] == f"/services/binder/api/v1/builds/{name}"
    assert answer.json["log"]["url"].startswith("/services/binder/api/")
    hook = harness.client.post("/services/binder/webhooks/github", **signed(push()))
    assert hook.json["builds"][0]["location"] == f"/services/binder/api/v1/builds/{name}"
    assert harness.client.get("/services/binder/").status_code == 200
    assert harness.client.get("/services/binder").status_code in (200, 308)
    assert harness.client.get("/static/kiln.css").status_code == 404
    with harness.client.get("/services/binder/static/kiln.css") as style:
        assert style.status_code == 200
    for outside in ("/", "/api/v1/builds", "/services/binder/livez", "/services/binder/metrics"):
        assert harness.client.get(outside).status_code == 404


@pytest.mark.parametrize("base", ["/a%40b/", "/caf%C3%A9/x%20y/", "/50%25/~ada%2Bkim@uni/", "/%E6%BC%A2%3f%23/"])
def test_a_percent_encoded_base_path_serves_under_the_letters_that_were_given(
    harnesses: Callable[..., Harness], base: str
) -> None:
    harness = harnesses(base_path=base, auth=["token"])
    client = harness.app.test_client(use_cookies=False)  # the client compares the decoded path with a cookie's
    answer = client.post(f"{base}api/v1/builds", json=body(), headers=bearer())
    name = answer.json["name"]
    assert answer.headers["Location"] == f"{base}api/v1/builds/{name}"
    assert client.get(answer.headers["Location"], headers=bearer()).status_code == 200
    assert client.get(f"{base}versions").status_code == 200
    html = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    page = client.get(base, headers=html)
    (form,) = re.findall(r'name="form" value="([^"]+)"', page.text)
    assert f'action="{base}login"' in page.text
    assert f'href="{base}static/kiln.css"' in page.text
    cookie = {"Cookie": page.headers["Set-Cookie"].partition(";")[0]}
    signed_in = {"form": form, "token": TOKENS["ci"].decode()}
    done = client.post(f"{base}login", data=signed_in, headers={**html, **cookie})
    assert (done.status_code, done.headers["Location"]) == (303, base)
    assert f"; Path={base}" in done.headers["Set-Cookie"]
    html["Cookie"] = done.headers["Set-Cookie"].partition(";")[0]
    page = client.get(f"{base}builds/{name}", headers=html)
    (form,) = re.findall(rf'action="{re.escape(base)}builds/{name}/cancel">\s*<input [^>]*value="([^"]+)"', page.text)
    cancelled = client.post(f"{base}builds/{name}/cancel", data={"form": form}, headers=html)
    assert (cancelled.status_code, cancelled.headers["Location"]) == (303, f"{base}builds/{name}")


def test_a_token_is_asked_for_and_rotates(harnesses: Callable[..., Harness]) -> None:
    harness = harnesses(auth=["token"])
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic Y2k6eA=="},
        {"Authorization": "Bearer \xe9"},
    ):
        answer = harness.client.get("/api/v1/builds", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert not any(token.decode() in answer.text for token in TOKENS.values())
    for name in TOKENS:
        answer = harness.client.post("/api/v1/builds", json=body(subdir=name), headers=bearer(name))
        assert answer.json["causes"][0]["by"] == f"token:{name}"
    for scheme in ("bearer ", "Token ", "TOKEN  ", "token\t", "bEARER \t"):
        headers = {"Authorization": f"{scheme}{TOKENS['ci'].decode()}"}
        assert harness.client.get("/api/v1/builds", headers=headers).status_code == 200
        assert harness.client.get("/", headers=headers).status_code == 200
        assert harness.client.get(f"/build/gh/a/b/{COMMIT}", headers=headers, buffered=False).status_code == 200
        sent = {"Content-Type": "application/cloudevents+json", **headers}
        assert harness.client.post("/events", json=event(), headers=sent).status_code == 202
    said = harness.client.get("/api/v1/builds", headers={"Authorization": "Basic Y2k6eA=="}).json["detail"]
    assert said.startswith("Basic credentials are not accepted")
    del harness.tokens["ci"]
    assert harness.client.get("/api/v1/builds", headers=bearer("ci")).status_code == 401
    assert harness.client.get("/api/v1/builds", headers=bearer("second")).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "kiln.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "10.0.0.1:8000"},
        {"Forwarded": "for=10.0.0.1"},
        {"X-Forwarded-For": "10.0.0.1"},
        {"X-Forwarded-Proto": "https"},
        {"X-Real-IP": "10.0.0.1"},
        {"Via": "1.1 proxy"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/builds", "/", "/static/kiln.css", "/nowhere"])
def test_where_nobody_is_asked_nobody_comes_from_elsewhere(
    harnesses: Callable[..., Harness], headers: dict[str, str], path: str
) -> None:
    harness = harnesses(loopback_only=True)
    assert harness.client.get(path, headers=headers).status_code == 403
    assert harness.client.post("/events", json={}, headers=headers).status_code == 403
    assert harness.client.options("/events", headers=headers).status_code == 403
    hook = signed(push())
    hook["headers"] |= headers
    assert harness.client.post("/webhooks/github", **hook).status_code == 403
    with harnesses().client.get(path, headers=headers) as answer:
        assert answer.status_code != 403


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000"])
def test_this_machine_comes_in(harnesses: Callable[..., Harness], host: str) -> None:
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert harnesses(loopback_only=True).client.get("/api/v1/builds", headers=headers).status_code == 200


def test_every_answer_is_closed_to_scripts_and_frames(harness: Harness) -> None:
    for path in ("/", "/api/v1/builds", "/nowhere", "/static/kiln.js"):
        with harness.client.get(path) as answer:
            headers = answer.headers
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_fault_of_ours_says_nothing_of_itself(
    harnesses: Callable[..., Harness], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(word: str) -> tuple[bytes, ...]:
        raise RuntimeError("a canary inside")

    harness = harnesses(webhook_secrets=broken)
    answer = harness.client.post("/webhooks/github", **signed(push()))
    assert answer.status_code == 500
    assert answer.mimetype == "application/problem+json"
    assert "canary" not in answer.text
    assert "a canary inside" in caplog.text


def test_the_log_line_of_a_request_knows_event_and_build(harness: Harness) -> None:
    about: dict[str, str] = {}
    answer = harness.client.post("/webhooks/github", **signed(push()), environ_overrides={"kiln.log": about})
    assert about == {"route": "/webhooks/<word>", "event_id": "d-1", "build": answer.json["builds"][0]["name"]}


def test_gates_are_tried_in_order() -> None:
    assert Gate((Named("user:ada"), Named("user:bob"))).admit(None).by == "user:ada"  # type: ignore[arg-type]
