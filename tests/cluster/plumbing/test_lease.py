"""Leadership by a Lease of a real API server: at most one leader under every fault, and a prompt successor."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from builds.engines.kubernetes.api import Api
from builds.engines.kubernetes.lease import Lease
from tests.cluster.plumbing.objects import lease as lease_object
from tests.parts.apiproxy import Answer, ApiProxy, Asked
from tests.parts.cluster import Cluster
from tests.parts.kiln import ROOT, until
from tests.parts.proxy import Proxy

pytestmark = pytest.mark.alone
"""Leadership depends on the clock, here by fractions of a second, so concurrent tests would distort the results."""

DURATION, STOP_AFTER, RETRY = 4.0, 3.0, 0.5
MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")

Standing = Callable[..., Lease]


@pytest.fixture(autouse=True)
def there(api: Api) -> None:
    api.create("leases", lease_object("kiln"))


@pytest.fixture
def standing() -> Iterator[Standing]:
    """Return a factory that starts a candidate; the fixture stops it after the test."""
    with ExitStack() as stack:

        def stand(api: Api, identity: str, **options: Any) -> Lease:
            lease = Lease(api, "kiln", identity, duration=DURATION, stop_after=STOP_AFTER, retry=RETRY, **options)
            lease.start()
            stack.callback(lease.stop)
            return lease

        yield stand


class Witness:
    """Check continuously whether two candidates lead at the same time."""

    def __init__(self, *leases: Lease) -> None:
        self.most = 0
        self._leases = leases
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self.most = max(self.most, sum(lease.leading for lease in self._leases))


def spec(api: Api) -> dict[str, Any]:
    return dict(api.read("leases", "kiln")["spec"])


def test_a_lease_that_nobody_had_is_taken_at_once(api: Api, standing: Standing) -> None:
    changes = threading.Semaphore(0)
    lease = standing(api, "a", changed=changes.release)
    assert changes.acquire(timeout=2)
    assert lease.leading
    assert lease.term == 1
    taken = spec(api)
    assert taken["holderIdentity"] == "a"
    assert taken["leaseDurationSeconds"] == DURATION
    assert taken["leaseTransitions"] == 0
    assert taken["acquireTime"] == taken["renewTime"]
    assert MICRO_TIME.fullmatch(taken["acquireTime"])


def test_it_is_renewed(api: Api, standing: Standing) -> None:
    lease = standing(api, "a")
    until(lambda: lease.leading)
    began = time.monotonic()
    taken = spec(api)
    while time.monotonic() < began + 2 * DURATION:
        assert lease.leading
        time.sleep(0.01)
    now = spec(api)
    assert now.pop("renewTime") > taken.pop("renewTime")
    assert now == taken
    assert lease.term == 1


def test_of_many_candidates_one_leads(api: Api, standing: Standing) -> None:
    leases = [standing(api, f"candidate-{number}") for number in range(5)]
    until(lambda: any(lease.leading for lease in leases))
    with Witness(*leases) as witness:
        time.sleep(DURATION + 1)  # this duration is the test: no candidate takes the Lease, though all of them try
    assert witness.most <= 1
    assert sorted(lease.term for lease in leases) == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("cut_off", ["refused", "silent"])
def test_a_leader_that_is_cut_off_stops_before_the_next_one_starts(
    api: Api, proxy: Proxy, proxied: Api, standing: Standing, cut_off: str, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()
    old = standing(proxied, "old", changed=lambda: ended.set() if not old.leading else None)
    until(lambda: old.leading)
    before = spec(api)
    new = standing(api, "new")
    until(lambda: new.trouble is None)
    with Witness(old, new) as witness:
        began = time.monotonic()
        if cut_off == "refused":
            proxy.refuse()
        else:
            proxy.drop = True
        until(lambda: not old.leading, STOP_AFTER + 0.2)
        until(lambda: new.leading, DURATION + RETRY + 1)
        assert time.monotonic() - began <= DURATION + RETRY + 1
        assert ended.wait(RETRY + 1)
        after = spec(api)
        assert after["leaseTransitions"] == before["leaseTransitions"] + 1
        assert after["acquireTime"] > before["acquireTime"]
        proxy.cut()
        proxy.drop = False
        proxy.accept()
        until(lambda: old.trouble is None, 5)
        assert new.leading
    assert witness.most <= 1
    assert (old.term, new.term) == (1, 1)
    assert "Lease kiln unavailable" in caplog.text


def test_a_new_term_begins_when_leadership_had_lapsed(api: Api, proxy: Proxy, proxied: Api, standing: Standing) -> None:
    """A lapse without another leader still begins a new term, because the leader's knowledge may be stale."""
    lease = standing(proxied, "a")
    until(lambda: lease.leading)
    before = spec(api)
    proxy.refuse()
    until(lambda: not lease.leading)
    proxy.accept()
    until(lambda: lease.leading, 5)
    assert lease.term == 2
    after = spec(api)
    assert (after["acquireTime"], after["leaseTransitions"]) == (before["acquireTime"], before["leaseTransitions"])


def test_a_blip_is_none(proxy: Proxy, proxied: Api, standing: Standing) -> None:
    lease = standing(proxied, "a")
    until(lambda: lease.leading)
    for _ in range(5):
        proxy.cut()
        for _ in range(20):
            assert lease.leading
            time.sleep(0.01)
    assert lease.term == 1


def test_a_renewal_whose_answer_is_lost_is_one(
    api_proxy: ApiProxy, via_api_proxy: Api, api: Api, standing: Standing
) -> None:
    """The renewal took effect, so the next one meets a record that is newer than the known one, but its own."""
    lost: list[Asked] = []

    def lose_one(asked: Asked) -> Answer | None:
        if asked.method != "PATCH" or len(api_proxy.requests) < 4 or lost:
            return None
        lost.append(asked)
        connection = api_proxy.upstream()
        connection.request(asked.method, asked.target, asked.body, {"Content-Type": asked.headers["Content-Type"]})
        assert connection.getresponse().status == 200
        connection.close()
        return Answer(None)

    api_proxy.rule = lose_one
    lease = standing(via_api_proxy, "a")
    until(lambda: lease.leading)
    until(lambda: lost)
    renewed = spec(api)["renewTime"]
    until(lambda: spec(api)["renewTime"] > renewed)
    assert lease.leading
    assert lease.term == 1


def test_the_next_one_takes_over_at_once_from_one_that_stops(api: Api, standing: Standing) -> None:
    old = Lease(api, "kiln", "old", duration=DURATION, stop_after=STOP_AFTER, retry=RETRY)
    old.start()
    until(lambda: old.leading)
    new = standing(api, "new")
    with Witness(old, new) as witness:
        old.stop()
        assert not old.leading
        until(lambda: new.leading, RETRY + 0.5)
    assert witness.most <= 1
    assert spec(api)["leaseTransitions"] == 1


def test_one_that_does_not_lead_releases_nothing(api: Api, standing: Standing) -> None:
    leader = standing(api, "leader")
    until(lambda: leader.leading)
    standby = Lease(api, "kiln", "standby", duration=DURATION, stop_after=STOP_AFTER, retry=RETRY)
    standby.start()
    standby.stop()
    assert spec(api)["holderIdentity"] == "leader"
    assert leader.leading


def test_it_stops_when_nothing_can_be_released(proxy: Proxy, proxied: Api, caplog: pytest.LogCaptureFixture) -> None:
    lease = Lease(proxied, "kiln", "a", duration=DURATION, stop_after=STOP_AFTER, retry=RETRY)
    lease.start()
    until(lambda: lease.leading)
    proxy.refuse()
    lease.stop()
    assert "Lease kiln not released, it expires in 4 s" in caplog.text


def test_a_lease_that_is_deleted_leads_nobody_and_is_named(
    api: Api, standing: Standing, caplog: pytest.LogCaptureFixture
) -> None:
    lease = standing(api, "a")
    until(lambda: lease.leading)
    api.delete("leases", "kiln")
    until(lambda: not lease.leading, RETRY + 0.5)
    sentence = f"Lease kiln not found in namespace {api.namespace}."
    until(lambda: sentence in (lease.trouble or ""))
    told = [record for record in caplog.records if sentence in record.getMessage()]
    assert len(told) == 1
    api.create("leases", lease_object("kiln"))
    until(lambda: lease.leading, 5)
    assert lease.term == 2
    assert lease.trouble is None


def test_what_others_write_into_it_changes_nothing(api: Api, standing: Standing) -> None:
    lease = standing(api, "a")
    until(lambda: lease.leading)
    for number in range(5):
        api.patch("leases", "kiln", {"metadata": {"annotations": {"by-hand": str(number)}}})
        renewed = spec(api)["renewTime"]
        until(lambda before=renewed: spec(api)["renewTime"] > before)
        assert lease.leading
    assert lease.term == 1
    assert api.read("leases", "kiln")["metadata"]["annotations"] == {"by-hand": "4"}


def test_a_role_that_is_missing_is_told(api: Api, api_proxy: ApiProxy, via_api_proxy: Api, standing: Standing) -> None:
    said = b'{"kind":"Status","code":403,"reason":"Forbidden","message":"leases is forbidden."}'
    api_proxy.rule = lambda _: Answer(403, (said,))
    lease = standing(via_api_proxy, "a")
    until(lambda: lease.trouble == "leases is forbidden.")
    assert not lease.leading


# Processes. ----------------------------------------------------------------------------------------------------------


class Candidate:
    """A candidate's process. `told` holds the times, by the shared clock, and whether it led at each."""

    def __init__(self, kubeconfig: str, namespace: str, identity: str) -> None:
        program = Path(__file__).with_name("candidate.py")
        command = [sys.executable, str(program), kubeconfig, namespace, identity]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.told: list[tuple[float, bool]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            moment, leads = line.split()
            self.told.append((float(moment), leads == "1"))

    @property
    def leads(self) -> bool:
        return self.told[-1][1] if self.told else False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def candidates(cluster: Cluster, namespace: str) -> Iterator[tuple[Candidate, Candidate]]:
    """Two candidates, of which the first leads."""
    first = Candidate(str(cluster.kubeconfig), namespace, "first")
    until(lambda: first.leads)
    second = Candidate(str(cluster.kubeconfig), namespace, "second")
    until(lambda: second.told)
    yield first, second
    first.kill()
    second.kill()


def test_a_leader_that_is_killed_is_followed(candidates: tuple[Candidate, Candidate]) -> None:
    first, second = candidates
    began = time.monotonic()
    first.process.kill()
    until(lambda: second.leads, DURATION + RETRY + 1)
    assert time.monotonic() - began > STOP_AFTER


def test_a_leader_that_was_paused_knows_when_it_wakes(candidates: tuple[Candidate, Candidate]) -> None:
    first, second = candidates
    first.process.send_signal(signal.SIGSTOP)
    until(lambda: second.leads, DURATION + RETRY + 1)
    woken = time.monotonic()
    first.process.send_signal(signal.SIGCONT)
    until(lambda: len([moment for moment, _ in first.told if moment > woken]) > 20)
    assert [led for moment, led in first.told if moment > woken].count(True) == 0
    assert second.leads


def test_a_renewal_counts_from_before_it_was_sent(api_proxy: ApiProxy, via_api_proxy: Api) -> None:
    """Each answer takes a second, by which time that second of leadership has passed."""

    def slowly(asked: Asked) -> None:
        if asked.method == "PATCH":
            api_proxy.closed.wait(1.0)

    api_proxy.rule = slowly
    lease = Lease(via_api_proxy, "kiln", "a", duration=6.0, stop_after=4.0, retry=1.0)
    lease.start()
    until(lambda: lease.leading)
    sent = next(asked.at for asked in api_proxy.requests if asked.method == "PATCH")
    api_proxy.rule = lambda _: Answer(503)
    until(lambda: not lease.leading)
    assert time.monotonic() - sent < 4.8, "counted from the answer it would be five"
    api_proxy.rule = lambda _: None
    lease.stop()
