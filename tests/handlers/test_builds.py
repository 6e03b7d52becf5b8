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
from tests.handlers.house import COMMIT, PREFIX, REPOSITORY, TOKENS, House, Named, bearer, body, event, push, signed
from tests.parts.githost import GitHost


def test_asking_answers_with_the_build_and_where_it_is(house: House) -> None:
    answer = house.client.post("/api/v1/builds", json=body(subdir="course/", tags=["latest"], force=False))
    assert answer.status_code == 202
    assert answer.mimetype == "application/json"
    build = answer.json
    assert answer.headers["Location"] == f"/api/v1/builds/{build['name']}"
    assert (build["state"], build["repository"], build["commit"]) == ("queued", REPOSITORY, COMMIT)
    assert build["log"]["url"] == f"/api/v1/builds/{build['name']}/log"
    again = house.client.get(answer.headers["Location"])
    assert again.json == build
    assert "Set-Cookie" not in again.headers


def test_two_spellings_are_one_build(house: House) -> None:
    names = {
        house.ask(repository=url).name
        for url in ("https://github.com/Octo/Stats.git", "https://GitHub.com/octo/stats/")
    }
    assert len(names) == 1


def test_null_stands_for_absent(house: House) -> None:
    absent = dict.fromkeys(("ref", "subdir", "build_args", "image", "tags", "force"))
    assert house.ask(**absent).name == house.ask().name


def test_a_ref_is_looked_up_at_a_real_host(houses: Callable[..., House], tmp_path: Path) -> None:
    with GitHost(tmp_path / "git") as host:
        content = tmp_path / "content"
        content.mkdir()
        (content / "README.md").write_text("hello")
        head = host.create("team/course", content)
        house = houses(allowed=[f"{host.base}/**"])
        answer = house.client.post("/api/v1/builds", json={"repository": host.url("team/course"), "ref": "main"})
        assert answer.status_code == 202, answer.text
        assert (answer.json["commit"], answer.json["ref"]) == (head, "refs/heads/main")
        answer = house.client.post("/api/v1/builds", json={"repository": host.url("team/course"), "ref": "nowhere"})
        assert answer.status_code == 422
        assert "nowhere" in answer.json["detail"]
    answer = house.client.post("/api/v1/builds", json={"repository": host.url("team/course"), "ref": "main"})
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
def test_what_is_refused_starts_nothing(house: House, data: bytes, status: int) -> None:
    answer = house.client.post("/api/v1/builds", data=data, content_type="application/json")
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/problem+json"
    assert (answer.json["status"], answer.json["type"]) == (status, "about:blank")
    assert answer.json["detail"].strip()
    assert not house.builds()


def test_an_address_with_a_password_is_refused_without_repeating_it(house: House) -> None:
    answer = house.client.post("/api/v1/builds", json=body(repository="https://ada:canary@github.com/a/b"))
    assert answer.status_code in (400, 422)
    assert "canary" not in answer.text


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_could_send_is_415(house: House, kind: str) -> None:
    answer = house.client.post("/api/v1/builds", data=json.dumps(body()), content_type=kind)
    assert answer.status_code == 415
    assert not house.builds()


def test_a_list_is_paged_newest_first(house: House) -> None:
    names = [house.ask(subdir=str(number)).name for number in range(5)]
    seen: list[str] = []
    query = "?limit=2"
    while True:
        answer = house.client.get(f"/api/v1/builds{query}").json
        seen += [item["name"] for item in answer["items"]]
        assert all("tail" not in item["log"] for item in answer["items"])
        if answer["continue"] is None:
            break
        query = f"?limit=2&continue={answer['continue']}"
    assert seen == names[::-1]


def listed(house: House, query: str, who: str = "ci") -> tuple[int, str | None]:
    answer = house.client.get(f"/api/v1/builds?limit=1{query}", headers=bearer(who))
    return answer.status_code, answer.json.get("continue")


def test_a_cursor_is_good_for_its_own_list_only(houses: Callable[..., House]) -> None:
    house = houses(auth=("token",))
    for number in range(3):
        assert house.client.post("/api/v1/builds", json=body(subdir=f"{number}"), headers=bearer()).status_code == 202
    status, cursor = listed(house, "")
    assert (status, listed(house, f"&continue={cursor}")[0]) == (200, 200)
    assert cursor
    for query, who in [
        (f"&continue={cursor}", "second"),
        (f"&continue={cursor}&state=queued", "ci"),
        (f"&continue={cursor}&repository={REPOSITORY}", "ci"),
        (f"&continue={cursor.swapcase()}", "ci"),
        (f"&continue={paging.cursor((2**60, 'build-x'))}", "ci"),
    ]:
        assert listed(house, query, who)[0] == 400, query


def test_a_cursor_lasts_as_long_as_a_secret_that_all_replicas_have(houses: Callable[..., House]) -> None:
    keys = [b"one"]
    house, replica = houses(cursor_keys=lambda: [b"one"]), houses(cursor_keys=lambda: keys)
    for number in range(3):
        house.ask(subdir=f"{number}")
    path = f"/api/v1/builds?continue={house.client.get('/api/v1/builds?limit=1').json['continue']}"
    assert replica.client.get(path).status_code == 200
    keys[:] = [b"another", b"one"]
    assert replica.client.get(path).status_code == 200
    keys[:] = [b"another"]
    assert replica.client.get(path).status_code == 400


def test_a_list_is_filtered(house: House) -> None:
    mine = house.ask()
    house.ask(repository="https://github.com/octo/other")
    spelled = house.client.get("/api/v1/builds", query_string={"repository": "https://GitHub.com/Octo/stats.git"})
    assert [item["name"] for item in spelled.json["items"]] == [mine.name]
    house.run(mine.name)
    assert [item["name"] for item in house.client.get("/api/v1/builds?state=running").json["items"]] == [mine.name]
    assert not house.client.get("/api/v1/builds?state=failed").json["items"]


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
def test_a_malformed_query_is_400(house: House, query: str) -> None:
    answer = house.client.get(f"/api/v1/builds?{query}")
    assert answer.status_code == 400
    assert answer.mimetype == "application/problem+json"


@pytest.mark.parametrize(
    "path", ["/api/v1/builds/none", "/api/v1/builds/none/log", "/nowhere", "/api/v1/builds/..%2f..%2fetc"]
)
def test_what_is_not_there_is_404(house: House, path: str) -> None:
    answer = house.client.get(path)
    assert answer.status_code == 404
    assert answer.mimetype == "application/problem+json"


def test_cancelling_leaves_a_mark_until_the_build_has_ended(house: House) -> None:
    build = house.ask()
    path = f"/api/v1/builds/{build.name}"
    assert house.client.delete(path).status_code == 202
    assert house.engine.get(build.name).cancel is not None
    house.run(build.name)
    house.end(build.name)
    answer = house.client.delete(path)
    assert answer.status_code == 409
    assert answer.mimetype == "application/problem+json"
    assert house.client.delete("/api/v1/builds/none").status_code == 404


def again(house: House, name: str, **more: object) -> TestResponse:
    return house.client.post(f"/api/v1/builds/{name}/rebuild", **{"json": {}, **more})  # type: ignore[arg-type]


def test_a_rebuild_is_of_the_same_request(house: House) -> None:
    wanted = {"subdir": "{course}", "build_args": {"A": "{x} }"}, "image": f"{PREFIX}courses/stats"}
    build = house.ask(**wanted, ref="refs/heads/main", tags=["main", "latest"])
    house.ask(**wanted, tags=["pinned"])
    house.run(build.name)
    house.end(build.name)
    answer = again(house, build.name)
    assert (answer.status_code, answer.headers["Location"]) == (202, f"/api/v1/builds/{build.name}")
    assert (answer.json["name"], answer.json["state"], answer.json["attempt"]) == (build.name, "queued", 2)
    assert "{x} }" not in answer.text, "a build argument may be a secret"
    assert house.engine.get(build.name).request.build_args == {"A": "{x} }"}
    assert [(cause["ref"], cause["tags"]) for cause in answer.json["causes"][2:]] == [
        ("refs/heads/main", ["main", "latest"]),
        (None, ["pinned"]),
    ]
    assert all(cause.force for cause in house.engine.get(build.name).unanswered)


def test_a_rebuild_joins_a_build_that_is_under_way(house: House) -> None:
    build = house.run(house.ask().name)
    answer = again(house, build.name)
    assert (answer.status_code, answer.json["state"], answer.json["attempt"]) == (202, "running", 1)


def test_a_rebuild_has_an_empty_object_for_its_body(house: House) -> None:
    name = house.ask().name
    assert again(house, name, json={"tags": ["x"]}).status_code == 400
    assert again(house, name, json=None, data=b"", content_type="text/plain").status_code == 415
    assert again(house, "none").status_code == 404
    assert len(house.engine.get(name).causes) == 1


def test_who_may_not_choose_rebuilds_what_they_could_ask_for(houses: Callable[..., House]) -> None:
    somebody = Named("token:ci", admin=True)
    house = houses(auth_gate=Gate((somebody,)))
    tagged, chosen = house.ask(tags=["latest"]), house.ask(image=f"{PREFIX}courses/stats")
    for build in (tagged, chosen):
        house.run(build.name)
        house.end(build.name, state=State.FAILED)
    somebody.by, somebody.admin = "user:ada", False
    assert again(house, tagged.name).json["causes"][1]["tags"] == []
    refused = again(house, chosen.name)
    assert (refused.status_code, "image" in refused.json["detail"]) == (403, True)
    house.run(tagged.name)
    house.end(tagged.name, attempt=1)
    assert again(house, tagged.name).status_code == 403


def test_a_rebuild_of_a_fork_s_build_stays_a_stranger_s(house: House) -> None:
    build = house.ask(ref="refs/pull/1/head")
    foreign = change(build.causes[0], foreign=True, head="refs/heads/x", tags=("pr-1",))
    (made,) = house.engine.accept([Submission(name=f"{build.name}x", request=build.request, cause=foreign)])
    assert again(house, made.name).status_code == 202
    cause = house.engine.get(build.name).causes[-1]
    assert (cause.foreign, cause.head, cause.tags, cause.credentials) == (True, "refs/heads/x", ("pr-1",), False)


def told(house: House) -> Build:
    """A build that has ended, whose last event the sink `hub` has refused."""
    build = house.run(house.ask().name)
    refused = Delivery(
        sink="hub", event="e", type="t", state=DeliveryState.DEAD, due_at=house.services.now(), error="no"
    )
    return house.end(build.name, deliveries=(refused,))


def test_the_last_event_is_sent_again(house: House) -> None:
    waiting = house.ask(subdir="waiting")
    build = told(house)

    def again(name: str, asked: object) -> int:
        return house.client.post(f"/api/v1/builds/{name}/resend", json=asked).status_code

    assert again(build.name, {"sink": "hub"}) == 202
    assert house.engine.get(build.name).resending == ("hub",)
    assert again(build.name, {"sink": "other"}) == 409
    assert again(waiting.name, {"sink": "hub"}) == 409
    assert again("none", {"sink": "hub"}) == 404
    for wrong in ({}, [], {"sink": 1}, {"sink": "hub", "more": 1}, "hub"):
        assert again(build.name, wrong) == 400


def test_only_an_admin_sends_again(houses: Callable[..., House]) -> None:
    house = houses(auth_gate=Gate((Named("user:ada"),)))
    build = told(house)
    answer = house.client.post(f"/api/v1/builds/{build.name}/resend", json={"sink": "hub"})
    assert answer.status_code == 403
    assert house.engine.get(build.name).resending == ()
    assert "Send again" not in house.client.get(f"/builds/{build.name}", headers={"Accept": "text/html"}).text


def test_who_is_no_admin_cancels_only_what_is_theirs_alone(houses: Callable[..., House]) -> None:
    somebody = Named("user:ada")
    house = houses(auth_gate=Gate((somebody,)))
    build = house.ask()
    somebody.by = "user:bob"
    assert house.client.delete(f"/api/v1/builds/{build.name}").status_code == 403
    house.ask()
    assert house.client.delete(f"/api/v1/builds/{build.name}").status_code == 403
    assert house.engine.get(build.name).cancel is None
    somebody.by = "user:ada"
    mine = house.ask(subdir="mine")
    assert house.client.delete(f"/api/v1/builds/{mine.name}").status_code == 202


def test_too_many_of_one_asker_are_429(houses: Callable[..., House]) -> None:
    house = houses(auth_gate=Gate((Named("user:ada"),)))
    for number in range(20):
        house.ask(subdir=str(number))
    answer = house.client.post("/api/v1/builds", json=body(subdir="one more"))
    assert answer.status_code == 429
    assert answer.headers["Retry-After"]


def test_the_base_path_is_in_every_location(houses: Callable[..., House]) -> None:
    house = houses(base_path="/services/binder/")
    answer = house.client.post("/services/binder/api/v1/builds", json=body())
    name = answer.json["name"]
    assert answer.headers["Location"] == f"/services/binder/api/v1/builds/{name}"
    assert answer.json["log"]["url"].startswith("/services/binder/api/")
    hook = house.client.post("/services/binder/webhooks/github", **signed(push()))
    assert hook.json["builds"][0]["location"] == f"/services/binder/api/v1/builds/{name}"
    assert house.client.get("/services/binder/").status_code == 200
    assert house.client.get("/services/binder").status_code in (200, 308)
    assert house.client.get("/static/kiln.css").status_code == 404
    with house.client.get("/services/binder/static/kiln.css") as style:
        assert style.status_code == 200
    for outside in ("/", "/api/v1/builds", "/services/binder/livez", "/services/binder/metrics"):
        assert house.client.get(outside).status_code == 404


@pytest.mark.parametrize("base", ["/a%40b/", "/caf%C3%A9/x%20y/", "/50%25/~ada%2Bkim@uni/", "/%E6%BC%A2%3f%23/"])
def test_a_percent_encoded_base_path_serves_under_the_letters_that_were_given(
    houses: Callable[..., House], base: str
) -> None:
    house = houses(base_path=base, auth=["token"])
    client = house.app.test_client(use_cookies=False)  # the client compares the decoded path with a cookie's
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


def test_a_token_is_asked_for_and_rotates(houses: Callable[..., House]) -> None:
    house = houses(auth=["token"])
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic Y2k6eA=="},
        {"Authorization": "Bearer \xe9"},
    ):
        answer = house.client.get("/api/v1/builds", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert not any(token.decode() in answer.text for token in TOKENS.values())
    for name in TOKENS:
        answer = house.client.post("/api/v1/builds", json=body(subdir=name), headers=bearer(name))
        assert answer.json["causes"][0]["by"] == f"token:{name}"
    for scheme in ("bearer ", "Token ", "TOKEN  ", "token\t", "bEARER \t"):
        headers = {"Authorization": f"{scheme}{TOKENS['ci'].decode()}"}
        assert house.client.get("/api/v1/builds", headers=headers).status_code == 200
        assert house.client.get("/", headers=headers).status_code == 200
        assert house.client.get(f"/build/gh/a/b/{COMMIT}", headers=headers, buffered=False).status_code == 200
        sent = {"Content-Type": "application/cloudevents+json", **headers}
        assert house.client.post("/events", json=event(), headers=sent).status_code == 202
    said = house.client.get("/api/v1/builds", headers={"Authorization": "Basic Y2k6eA=="}).json["detail"]
    assert said.startswith("Basic credentials are not accepted")
    del house.tokens["ci"]
    assert house.client.get("/api/v1/builds", headers=bearer("ci")).status_code == 401
    assert house.client.get("/api/v1/builds", headers=bearer("second")).status_code == 200


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
    houses: Callable[..., House], headers: dict[str, str], path: str
) -> None:
    house = houses(loopback_only=True)
    assert house.client.get(path, headers=headers).status_code == 403
    assert house.client.post("/events", json={}, headers=headers).status_code == 403
    assert house.client.options("/events", headers=headers).status_code == 403
    hook = signed(push())
    hook["headers"] |= headers
    assert house.client.post("/webhooks/github", **hook).status_code == 403
    with houses().client.get(path, headers=headers) as answer:
        assert answer.status_code != 403


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000"])
def test_this_machine_comes_in(houses: Callable[..., House], host: str) -> None:
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert houses(loopback_only=True).client.get("/api/v1/builds", headers=headers).status_code == 200


def test_every_answer_is_closed_to_scripts_and_frames(house: House) -> None:
    for path in ("/", "/api/v1/builds", "/nowhere", "/static/kiln.js"):
        with house.client.get(path) as answer:
            headers = answer.headers
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_fault_of_ours_says_nothing_of_itself(houses: Callable[..., House], caplog: pytest.LogCaptureFixture) -> None:
    def broken(word: str) -> tuple[bytes, ...]:
        raise RuntimeError("a canary inside")

    house = houses(webhook_secrets=broken)
    answer = house.client.post("/webhooks/github", **signed(push()))
    assert answer.status_code == 500
    assert answer.mimetype == "application/problem+json"
    assert "canary" not in answer.text
    assert "a canary inside" in caplog.text


def test_the_log_line_of_a_request_knows_event_and_build(house: House) -> None:
    about: dict[str, str] = {}
    answer = house.client.post("/webhooks/github", **signed(push()), environ_overrides={"kiln.log": about})
    assert about == {"route": "/webhooks/<word>", "event_id": "d-1", "build": answer.json["builds"][0]["name"]}


def test_gates_are_tried_in_order() -> None:
    assert Gate((Named("user:ada"), Named("user:bob"))).admit(None).by == "user:ada"  # type: ignore[arg-type]
