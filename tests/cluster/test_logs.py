"""A build's log on Kubernetes is the same for all viewers on all replicas of web, up to its last line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

import pytest

from builds.engines.kubernetes.api import CONNECTIONS
from kiln.client import Message
from tests.parts import machine
from tests.parts.cluster import Cluster, Release
from tests.parts.installation import SMALL
from tests.parts.kiln import until
from tests.parts.pods import Pod, Replica, lines, replicas, within
from tests.parts.viewers import Viewers

pytestmark = pytest.mark.timeout(300)

LAST = 2000
VIEWERS = 20
CROWD = 300 - 2 * VIEWERS
"""Viewers whose messages the test does not check."""
MIB = 1 << 20


@pytest.fixture
def webs(release: Release) -> tuple[Replica, Replica]:
    one, two = replicas(release)
    return one, two


@contextmanager
def following(viewers: int = 8) -> Iterator[ThreadPoolExecutor]:
    """Return a pool of threads that follow a log.

    The context does not wait for them after a failed test, since a build ends eventually.
    """
    pool = ThreadPoolExecutor(viewers)
    yield pool
    pool.shutdown(wait=False, cancel_futures=True)


def commit_of(release: Release, path: str, dockerfile: str) -> str:
    busybox = machine.program("busybox", "busybox-static").read_bytes()
    return release.commit(path, {"Dockerfile": dockerfile, "busybox": busybox})


def test_a_log_is_followed_over_replicas_and_attempts_to_the_last_line(
    release: Release, webs: tuple[Replica, Replica]
) -> None:
    """The first attempt is killed. The second prints many lines at its very end and then fails."""
    one, two = webs
    _, exactly = release.running("ada/log", 8)
    loud = f"i=0; while [ $i -lt {LAST} ]; do i=$((i+1)); echo the end is near $i; done; exit 3"
    dockerfile = f"""
        FROM scratch
        COPY busybox /bin/busybox
        RUN ["/bin/busybox", "sleep", "{exactly}"]
        RUN ["/bin/busybox", "sh", "-c", "{loud}"]
    """
    commit = commit_of(release, "ada/log", dockerfile)
    with following() as pool:
        name = release.build("ada/log", commit)
        whole = [pool.submit(list, web.follow(name)) for web in webs]
        release.step_runs(name, exactly)
        now = one.text(name)
        assert f'"sleep", "{exactly}"' in now or exactly in now
        assert "the end is near" not in now
        begun = list(islice(lines(one.follow(name)), 3))
        rest = pool.submit(list, two.follow(name, begun[-1][0]))
        (pod,) = release.objects("pods", selector=f"kiln.dev/build={name}")
        release.cluster.signal(pod, "KILL", "builds.builder")
        build = release.ended(name, 150)
        assert (build["state"], build["reason"], build["attempt"]) == ("failed", "repository", 2)
        seen, same = (list(lines(future.result(30))) for future in whole)
        resumed = list(lines(rest.result(30)))
    assert seen == same == begun + resumed
    by_attempt = {attempt: [id_ for id_, _ in seen if id_.startswith(f"{attempt}:")] for attempt in (1, 2)}
    assert [id_ for id_, _ in seen] == by_attempt[1] + by_attempt[2]
    for attempt, ids in by_attempt.items():
        assert ids == [f"{attempt}:{number}" for number in range(1, len(ids) + 1)]
    first = [text for id_, text in seen if id_.startswith("1:")]
    assert now.splitlines() == first[: len(now.splitlines())]
    said = re.findall(r"the end is near (\d+)$", "\n".join(text for _, text in seen), re.MULTILINE)
    assert said[:LAST] == [str(number) for number in range(1, LAST + 1)]
    second = "".join(f"{text}\n" for id_, text in seen if id_.startswith("2:"))
    assert one.text(name) == two.text(name) == second
    assert _end(whole[0].result()) == ("failed", 2)


def _end(seen: list[Message]) -> tuple[str, int]:
    last = seen[-1]
    assert last.kind == "state"
    return last.data["state"], last.data["attempt"]


def test_without_its_pod_a_log_is_whole(release: Release, webs: tuple[Replica, Replica]) -> None:
    """The log is complete although no client read it before the pod was deleted."""
    name = release.build("ada/gone", release.commit("ada/gone", {"Dockerfile": SMALL}))
    assert release.ended(name)["state"] == "succeeded"
    release.cluster.kubectl("delete", "jobs", f"--namespace={release.namespace}", f"--selector=kiln.dev/build={name}")
    until(lambda: not release.objects("pods", selector=f"kiln.dev/build={name}"))
    build = release.one(name)
    for web in webs:
        text = web.text(name)
        assert text.startswith("Fetching ")
        assert f"@{build['image']['digest']}" in text.splitlines()[-2]
        messages = list(web.follow(name))
        assert "".join(f"{line}\n" for _, line in lines(messages)) == text
        assert _end(messages) == ("succeeded", 1)
    assert text.endswith(f"{build['log']['tail']}\n")


STAGES = 5
LINES = 15_000
"""Lines of each stage.

BuildKit limits a step to 200 KiB a second and 2 MiB in total, so several stages print at the same time.
"""


def test_of_a_log_that_is_too_long_head_and_tail_are_served_whole(
    release: Release, webs: tuple[Replica, Replica]
) -> None:
    one, two = webs
    loud = (
        "for i in $(/bin/busybox seq {rounds}); do "
        "/bin/busybox yes '{text}' | /bin/busybox head -n 1000; /bin/busybox sleep 0.4; done; : > /said-{stage}"
    )
    text = "this is said again and again, for as long as it may be."
    base = "FROM scratch AS base\nCOPY busybox /bin/busybox\nCOPY page /page\n"
    steps = [loud.format(rounds=LINES // 1000, text=text, stage=stage) for stage in range(STAGES)]
    stages = [
        f'FROM base AS s{stage}\nRUN ["/bin/busybox", "sh", "-c", "{step}"]\n' for stage, step in enumerate(steps)
    ]
    copies = [f"COPY --from=s{stage} /said-{stage} /\n" for stage in range(STAGES)]
    name = release.build("ada/loud", commit_of(release, "ada/loud", "".join([base, *stages, "FROM base\n", *copies])))
    build = release.ended(name, 200)
    assert build["state"] == "succeeded", build["message"]
    said = list(lines(one.follow(name)))
    assert two.text(name) == "".join(f"{line}\n" for _, line in said)
    numbers = [int(id_.removeprefix("1:")) for id_, _ in said]
    (place,) = [index for index, (_, line) in enumerate(said) if "lines left out" in line]
    left_out = re.fullmatch(r"\[(\d+) lines left out: a log ends at 8 MiB\]", said[place][1])
    assert left_out
    missing = int(left_out[1])
    assert numbers[: place + 1] == list(range(1, place + 2))
    assert numbers[place + 1 :] == list(range(place + 1 + missing, numbers[-1] + 1))
    assert sum(line.endswith(text) for _, line in said) + missing > STAGES * LINES * 0.9
    head = sum(len(line.encode()) for _, line in said[:place])
    tail = sum(len(line.encode()) for _, line in said[place + 1 :])
    assert 3 * MIB < head < 8 * MIB
    assert 16 << 10 < tail <= 64 << 10
    assert build["log"]["tail"].splitlines()[-1] == said[-1][1]


def test_all_viewers_of_a_build_share_one_stream_of_a_replica(release: Release, webs: tuple[Replica, Replica]) -> None:
    before = streams(release.cluster)
    commit, exactly = release.running("ada/watched", 240)
    name = release.build("ada/watched", commit)
    with following(2 * VIEWERS) as pool:
        seen: list[list[Message]] = [[] for _ in range(2 * VIEWERS)]
        futures: list[Future[None]] = [
            pool.submit(messages.extend, webs[number % 2].follow(name)) for number, messages in enumerate(seen)
        ]
        release.step_runs(name, exactly)
        until(lambda: all(list(lines(list(messages))) for messages in seen), 60)
        address = f"{release.url}api/v1/builds/{name}/log"
        with Viewers(address, CROWD, {"Accept": "text/event-stream"}) as crowd:
            until(lambda: crowd.reading == CROWD, 60)
            until(lambda: streams(release.cluster) - before == len(webs), 60)
        release.cancel(name)
        assert release.ended(name)["state"] == "cancelled"
        for future in futures:
            future.result(30)
    assert len({tuple(lines(messages)) for messages in seen}) == 1
    assert {_end(messages) for messages in seen} == {("cancelled", 1)}
    until(lambda: streams(release.cluster) == before)


def test_a_thousand_who_come_and_go_leave_nothing_behind(release: Release) -> None:
    name = release.talking("ada/crowded")
    pods = release.objects("pods", "web")
    address = f"{release.url}api/v1/builds/{name}/log"

    def come_and_go(times: int) -> None:
        for _ in range(times):
            with Viewers(address, CROWD, {"Accept": "text/event-stream"}) as crowd:
                until(lambda: crowd.reading == CROWD, 60)
        metrics = [Pod(release.cluster, pod, 9090) for pod in pods]
        until(lambda: all("kiln_log_viewers 0.0" in pod.get("metrics").text for pod in metrics))

    def held() -> list[tuple[int, int]]:
        """Return the numbers of threads, and of open files and sockets, in each pod."""
        counts = "ls -d /proc/[0-9]*/task/* | wc -l; ls -d /proc/[0-9]*/fd/* | wc -l"
        said = [within(release.cluster, pod, "sh", "-c", counts).split() for pod in pods]
        return [(int(threads), int(files)) for threads, files in said]

    def nothing_more() -> bool:
        """Allow connections to the API server, some of which web keeps."""
        both = zip(held(), before, strict=True)
        return all(now[0] <= then[0] and now[1] < then[1] + CONNECTIONS for now, then in both)

    come_and_go(1)
    before = held()
    come_and_go(4)
    print(f"threads and open files: {before}, then {held()}")
    until(nothing_more)
    release.cancel(name)
    assert release.ended(name)["state"] == "cancelled"


def streams(cluster: Cluster) -> int:
    """Return the number of pod logs that the API server streams at this moment."""
    shown = cluster.api("GET", "/metrics").text.splitlines()
    gauges = [line for line in shown if line.startswith("apiserver_longrunning_requests{")]
    logs = [line for line in gauges if 'resource="pods"' in line and 'subresource="log"' in line]
    return int(sum(float(line.rpartition(" ")[2]) for line in logs))
