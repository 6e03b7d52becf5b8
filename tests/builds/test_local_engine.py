"""The local engine: the contract of all engines and its own behaviour, with real processes, locks and `kill -9`."""

from __future__ import annotations

import fcntl
import gzip
import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from builds.build import Build, Phase, Sighting, State
from builds.builder.spec import Spec, Surroundings
from builds.engines import EngineError, NotFound, Refused, Unavailable
from builds.engines.local import LocalEngine
from builds.faults import Fault
from builds.removal import remove
from eventing.tracing import Trace
from tests.builds.engine_contract import RecordsContract, everything
from tests.builds.engine_factories import AT, local_engine, new_submission, settled_build, start_build, started_build
from tests.parts.kiln import until

ROOT = Path(__file__).resolve().parents[2]


def stop(engine: LocalEngine, build: Build) -> None:
    assert build.live is not None
    engine.stop(build, build.live)


def sighted(engine: LocalEngine) -> Sighting:
    (sighting,) = engine.observe().sightings
    return sighting


def awaited(engine: LocalEngine, *phases: Phase) -> Sighting:
    """Return the sighting once the attempt is in one of `phases`. The engine's own `wait` must report it in time."""
    deadline = time.monotonic() + 20
    while (sighting := sighted(engine)).phase not in phases:
        assert time.monotonic() < deadline, f"still {sighting}"
        began = time.monotonic()
        engine.wait(10)
        assert time.monotonic() - began < 9, f"did not return although the attempt left the phase {sighting.phase}"
    return sighting


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def folder(state: Path, name: str = "b", number: int = 1) -> Path:
    return state / "attempts" / f"{name}-{number}"


def runs(state: Path, name: str = "b", number: int = 1) -> list[int]:
    """Return the process ids of all builders that have run in the attempt's folder."""
    return [int(line) for line in (folder(state, name, number) / "runs").read_text().split()]


def drive(state: Path, *words: str, faults: Path | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, **({"KILN_FAULT": str(faults)} if faults else {})}
    command = [sys.executable, "-m", "tests.builds.programs.driver", words[0], str(state), *words[1:]]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state folder. At the end of the test, process groups that still hold an attempt's lock are killed."""
    yield tmp_path
    for group in tmp_path.glob("attempts/*/group"):
        with (group.parent / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.killpg(int(group.read_text()), signal.SIGKILL)


@pytest.fixture
def engine(state: Path) -> Iterator[LocalEngine]:
    engine = local_engine(state)
    yield engine
    engine.close()


class TestContract(RecordsContract):
    @pytest.fixture
    def records(self, state: Path) -> Iterator[LocalEngine]:
        engine = local_engine(state, max_queued=5, max_queued_per_user=2)
        yield engine
        engine.close()


# ---- The file -------------------------------------------------------------------------------------------------------


def together(state: Path, *commands: tuple[str, ...]) -> None:
    """Run several processes that begin at the same moment."""
    processes = [drive(state, *words) for words in commands]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.communicate("go\n", timeout=50)
        assert process.returncode == 0


def test_200_copies_over_two_processes_are_one_build_with_one_cause(state: Path, engine: LocalEngine) -> None:
    together(state, ("copies", "100"), ("copies", "100"))
    (build,) = engine.observe().builds
    assert len(build.causes) == 1
    assert build.revision == "1"


def test_20_events_over_two_processes_are_20_causes(state: Path, engine: LocalEngine) -> None:
    together(state, ("events", "0", "10"), ("events", "10", "10"))
    (build,) = engine.observe().builds
    assert {cause.id for cause in build.causes} == {f"event-{n}" for n in range(20)}


def test_the_file_is_made_by_whoever_comes_first(state: Path) -> None:
    together(state, *[("builds", str(10 * n), "10") for n in range(3)])
    engine = local_engine(state)
    assert len(everything(engine)) == 30
    engine.close()


def test_many_threads_share_an_engine(engine: LocalEngine) -> None:
    """Optimistic concurrency: no read-modify-write of a thread is lost, and none blocks another for long."""
    engine.accept([new_submission("b")])

    def count() -> None:
        for _ in range(10):
            while True:
                build = engine.get("b")
                number = int(build.status.waiting or 0) + 1
                try:
                    engine.write(replace(build, status=replace(build.status, waiting=str(number))))
                    break
                except EngineError:
                    continue

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert engine.get("b").status.waiting == "80"


@pytest.mark.parametrize(("fault", "survives"), [(Fault.WEB_ACCEPTING, False), (Fault.WEB_ACCEPTED, True)])
def test_web_killed_while_it_accepts(state: Path, fault: Fault, survives: bool) -> None:
    (state / fault).touch()
    process = drive(state, "accept", "b", faults=state)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert not (state / fault).exists()
    engine = local_engine(state)
    assert everything(engine) == (["b"] if survives else [])
    (build,) = engine.accept([new_submission("b")])
    assert len(build.causes) == 1
    engine.close()


def test_records_outlive_the_process(state: Path, engine: LocalEngine) -> None:
    build = started_build(engine, "b")
    engine.close()
    again = local_engine(state)
    assert again.get("b") == build
    again.close()


def test_a_newer_file_is_refused(state: Path, engine: LocalEngine) -> None:
    with sqlite3.connect(state / "kiln.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(EngineError, match=r"belongs to a newer Kiln.*99"):
        local_engine(state)


def test_records_are_nobody_elses_business(state: Path) -> None:
    folder = state / "open"
    folder.mkdir(mode=0o755)
    engine = local_engine(folder)
    engine.accept([new_submission()])
    assert {path.name: path.stat().st_mode & 0o077 for path in folder.iterdir()} == dict.fromkeys(
        ("attempts", "kiln.db", "kiln.db-wal", "kiln.db-shm"), 0
    )
    engine.close()


def test_a_state_folder_that_cannot_be_is_said(state: Path) -> None:
    (state / "file").write_text("")
    with pytest.raises(Unavailable, match="KILN_STATE_DIR"):
        local_engine(state / "file" / "below")
    (state / "db").mkdir()
    (state / "db" / "kiln.db").write_text("not a database at all " * 100)
    with pytest.raises(Unavailable, match="is not a database"):
        local_engine(state / "db")


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"not JSON",
        b"\xff\xfe",
        b"[]",
        b'{"version":1}',
        b'{"version":1,"uid":"\xff"}',
        b'{"version":2,"new":{}}',
        b"[" * 50000,
    ],
)
def test_a_record_that_cannot_be_read_is_left_alone_and_reported_once(
    state: Path, engine: LocalEngine, caplog: pytest.LogCaptureFixture, record: bytes
) -> None:
    engine.accept([new_submission("a"), new_submission("b"), new_submission("c")])
    connection = sqlite3.connect(state / "kiln.db")
    with connection:
        connection.execute("UPDATE builds SET record = ? WHERE name = 'b'", (record,))
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        assert [build.name for build in engine.observe().builds] == ["a", "c"]
        assert everything(engine) == ["c", "a"]
        assert list(engine.closed(datetime.now(UTC))) == []
    assert [line.message for line in caplog.records] == [line for line in caplog.messages if "record of b" in line]
    assert len(caplog.records) == 1
    for call in (
        lambda: engine.get("b"),
        lambda: engine.accept([new_submission("b", "2")]),
        lambda: engine.cancel("b", None),
    ):
        with pytest.raises(Unavailable, match="record of b"):
            call()
    assert connection.execute("SELECT record FROM builds WHERE name = 'b'").fetchone() == (record,)
    connection.close()


def test_a_locked_or_full_or_read_only_file_is_unavailable(
    state: Path, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builds.engines.local.store.BUSY_TIMEOUT", 0.1)
    other = sqlite3.connect(state / "kiln.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked by another process"):
        engine.accept([new_submission("b")])
    assert everything(engine) == [], "reading goes on"
    other.execute("ROLLBACK")
    other.close()
    engine.accept([new_submission("b")])

    def limited(pragma: str) -> Callable[[], sqlite3.Connection]:
        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(state / "kiln.db", isolation_level=None, check_same_thread=False)
            connection.execute(pragma)
            return connection

        return connect

    engine.close()
    for pragma, sentence in (("PRAGMA max_page_count = 1", "disk is full"), ("PRAGMA query_only = 1", "written")):
        with monkeypatch.context() as patch:
            patch.setattr(engine._store, "connect", limited(pragma))
            with pytest.raises(Unavailable, match=sentence):
                engine.accept([new_submission("c" * 100, str(n)) for n in range(100)])
    assert everything(engine) == ["b"]


def test_ten_thousand_builds(engine: LocalEngine) -> None:
    """The printed figures inform readers. The test asserts only that the operations work."""
    (old,) = engine.accept([new_submission("old")])
    record = settled_build(old)
    with engine._store._writing() as connection:
        for n in range(10_000):
            name = f"build-{n:05}"
            at = AT + timedelta(seconds=n)
            engine._store._put(connection, replace(record, name=name, uid=name, created_at=at))
    for n in range(20):
        started_build(engine, f"open-{n}")

    def timed(what: str, call: Callable[[], object]) -> None:
        began = time.perf_counter()
        for _ in range(10):
            call()
        print(f"10,000 builds: {what}: {(time.perf_counter() - began) * 100:.2f} ms")

    timed("list, first 50", engine.list)
    timed("list of one state", lambda: engine.list(state=State.FAILED))
    timed("list of one repository", lambda: engine.list(repository="https://example.org/a"))
    timed("list, nothing found", lambda: engine.list(repository="https://example.org/a", state=State.CANCELLED))
    timed("observe, 20 open", engine.observe)
    timed("get", lambda: engine.get("build-05000"))
    timed("accept, joining", lambda: engine.accept([new_submission("open-1", str(time.monotonic_ns()))]))
    timed("accept, known", lambda: engine.accept([new_submission("open-1")]))
    began = time.perf_counter()
    assert sum(1 for _ in engine.closed(AT)) == 10_000
    print(f"10,000 builds: all closed ones: {(time.perf_counter() - began) * 1000:.0f} ms")


def test_while_folders_are_deleted_others_write(
    state: Path, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_build(engine)
    awaited(engine, Phase.ENDED)
    settled = engine.write(settled_build(engine.get("b")))
    others = iter("cd")

    def write(path: Path) -> None:
        engine.accept([new_submission(next(others))])
        remove(path)

    monkeypatch.setattr("builds.engines.local.attempts.remove", write)
    engine.forget(settled)
    assert everything(engine) == ["c"]
    assert not folder(state).exists()


# ---- Attempts -------------------------------------------------------------------------------------------------------


def test_an_attempt_from_start_to_end(state: Path, engine: LocalEngine) -> None:
    build = started_build(engine, "b")
    assert sighted(engine).phase is Phase.ABSENT
    assert build.live is not None
    engine.start(build, build.live)
    sighting = awaited(engine, Phase.ENDED)
    assert (sighting.build, sighting.attempt, sighting.node) == ("b", 1, "local")
    assert sighting.result is not None
    assert sighting.result.state is State.SUCCEEDED
    assert sighting.started_at is not None
    assert sighting.ended_at is not None
    assert build.live.written_at - timedelta(seconds=1) < sighting.started_at <= sighting.ended_at
    spec = msgspec.json.decode((folder(state) / "spec.json").read_bytes(), type=Spec)
    assert (spec.name, spec.attempt, spec.attempt_label) == ("b", 1, f"{build.uid}.1")
    assert spec.request == build.request


def test_starting_twice_starts_once(state: Path, engine: LocalEngine) -> None:
    build = start_build(engine, do="wait")
    assert build.live is not None
    engine.start(build, build.live)
    awaited(engine, Phase.RUNNING)
    other = local_engine(state)
    other.start(build, build.live)
    stop(engine, build)
    awaited(engine, Phase.ENDED)
    other.start(build, build.live)
    assert sighted(other).phase is Phase.ENDED
    assert len(runs(state)) == 1
    other.close()


def test_many_who_start_at_once_start_one(state: Path, engine: LocalEngine) -> None:
    build = started_build(engine, "b", "wait")
    live = build.live
    assert live is not None
    engines = [local_engine(state) for _ in range(6)]
    gate = threading.Barrier(6)

    def start(one: LocalEngine) -> None:
        gate.wait()
        while sighted(one).phase is Phase.ABSENT:
            try:
                one.start(build, live)
            except Unavailable:  # another engine starts it now
                continue

    threads = [threading.Thread(target=start, args=(one,)) for one in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    awaited(engine, Phase.RUNNING)
    until((folder(state) / "ready").exists)
    assert len(runs(state)) == 1
    for one in engines:
        one.close()


@pytest.mark.parametrize("do", ["succeed", "wait"])
@pytest.mark.parametrize("fault", [Fault.ENGINE_FOLDER_MADE, Fault.ENGINE_SPAWNED])
def test_a_controller_killed_while_it_starts(state: Path, engine: LocalEngine, fault: Fault, do: str) -> None:
    build = started_build(engine, "b", do)
    (state / fault).touch()
    process = drive(state, "start", "b", faults=state)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert not (state / fault).exists()
    if fault is Fault.ENGINE_FOLDER_MADE:
        assert sighted(engine).phase is Phase.ABSENT
    assert build.live is not None
    engine.start(build, build.live)
    if do == "wait":
        awaited(engine, Phase.RUNNING)
        until((folder(state) / "ready").exists)
        stop(engine, build)
    assert awaited(engine, Phase.ENDED).result is not None
    assert len(runs(state)) == 1


def test_a_running_attempt_is_adopted(state: Path) -> None:
    controller = drive(state, "control", "b", "wait")
    assert controller.stdout is not None
    assert controller.stdout.readline() == "started\n"
    until((folder(state) / "ready").exists)
    os.kill(controller.pid, signal.SIGKILL)
    controller.communicate(timeout=10)
    engine = local_engine(state)
    assert awaited(engine, Phase.RUNNING).started_at is not None
    stop(engine, engine.get("b"))
    sighting = awaited(engine, Phase.ENDED)
    assert sighting.result is not None
    assert sighting.result.state is State.CANCELLED
    assert len(runs(state)) == 1
    engine.close()


def test_a_builder_that_dies_alone_takes_the_rest_along(state: Path, engine: LocalEngine) -> None:
    start_build(engine, do="stubborn")
    until((folder(state) / "ready").exists)
    child = int((folder(state) / "child").read_text())
    (builder,) = runs(state)
    os.kill(builder, signal.SIGKILL)
    sighting = awaited(engine, Phase.ENDED)
    assert sighting.result is None
    until(lambda: not alive(child))


def test_an_attempt_that_is_killed_whole_has_ended_without_a_result(state: Path, engine: LocalEngine) -> None:
    start_build(engine, do="wait")
    until((folder(state) / "ready").exists)
    (builder,) = runs(state)
    os.killpg(builder, signal.SIGKILL)
    sighting = awaited(engine, Phase.ENDED)
    assert sighting.result is None
    assert sighting.started_at is not None


@pytest.mark.parametrize("how", ["alone", "whole", "not stopping"])
def test_what_a_killed_builder_leaves_goes_when_its_end_is_seen(state: Path, how: str) -> None:
    """Its working folder holds a checkout, Git's token and the registry's password."""
    later = timedelta()
    engine = local_engine(state, now=lambda: datetime.now(UTC) + later)
    build = start_build(engine, do="stubborn")
    until((folder(state) / "ready").exists)
    assert list(folder(state).glob("kiln-*/token"))
    (builder,) = runs(state)
    if how == "not stopping":
        stop(engine, build)
        later = timedelta(seconds=31)
    elif how == "whole":
        os.killpg(builder, signal.SIGKILL)
    else:
        os.kill(builder, signal.SIGKILL)
    awaited(engine, Phase.ENDED)
    assert not list(folder(state).glob("kiln-*"))
    assert (folder(state) / "log").exists()
    engine.close()


def test_folders_whose_record_was_deleted_meanwhile_are_swept_when_nothing_in_them_is_alive(
    state: Path, engine: LocalEngine
) -> None:
    for name in ("dead", "alive", "known"):
        start_build(engine, name, "wait")
        until((folder(state, name) / "ready").exists)
    for name in ("dead", "known"):
        os.killpg(*runs(state, name), signal.SIGKILL)
    with closing(sqlite3.connect(state / "kiln.db")) as connection, connection:
        connection.execute("DELETE FROM builds WHERE name != 'known'")
    again = local_engine(state)
    until(lambda: not list(filter(None, again.closed(AT))) and not folder(state, "dead").exists())
    assert folder(state, "alive").exists()
    assert folder(state, "known").exists()
    again.close()


def test_a_record_that_says_it_had_a_billion_attempts_is_forgotten_at_once(engine: LocalEngine) -> None:
    build = settled_build(started_build(engine, "b"))
    engine.forget(engine.write(replace(build, status=replace(build.status, attempt=10**9))))
    assert everything(engine) == []


def test_a_record_goes_by_the_name_it_is_stored_under(state: Path, engine: LocalEngine) -> None:
    """The name inside a record does not count. Otherwise one record could pass for another."""
    engine.accept([new_submission("a"), new_submission("b")])
    with closing(sqlite3.connect(state / "kiln.db")) as connection, connection:
        connection.execute("UPDATE builds SET record = (SELECT record FROM builds WHERE name = 'a')")
    assert sorted(build.name for build in engine.observe().builds) == ["a", "b"]


def test_of_a_build_in_flight_no_attempt_is_seen_and_its_deletion_is_told_later(
    state: Path, engine: LocalEngine
) -> None:
    build = start_build(engine, do="wait")
    until((folder(state) / "ready").exists)
    assert [one.build for one in engine.observe().sightings] == ["b"]
    seen = engine.observe({"b"})
    assert ([one.name for one in seen.builds], seen.sightings) == (["b"], ())
    with closing(sqlite3.connect(state / "kiln.db")) as connection, connection:
        connection.execute("DELETE FROM builds")
    assert engine.observe({"b"}).deleted == ()
    assert [one.uid for one in engine.observe().deleted] == [build.uid]
    assert engine.observe().deleted == ()


def test_a_folder_that_cannot_be_deleted_holds_up_no_end(
    state: Path, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(path: Path) -> None:
        raise OSError(f"{path} cannot be deleted completely")

    start_build(engine, do="wait")
    until((folder(state) / "ready").exists)
    os.killpg(*runs(state), signal.SIGKILL)
    monkeypatch.setattr("builds.engines.local.attempts.remove", fails)
    assert awaited(engine, Phase.ENDED).result is None
    assert [line for line in caplog.messages if "kiln-left cannot be deleted" in line]
    with pytest.raises(Refused, match="cannot be deleted"):
        engine.forget(engine.get("b"))
    assert everything(engine) == ["b"], "the engine finds the folder by its record"


def test_a_builder_that_cannot_even_begin_is_not_tried_for_ever(state: Path, engine: LocalEngine) -> None:
    build = start_build(engine, do="break")
    assert awaited(engine, Phase.ENDED).result is None
    assert build.live is not None
    engine.start(build, build.live)
    assert sighted(engine).phase is Phase.ENDED
    assert (folder(state) / "errors").read_text() == "cannot even begin\n"


def test_a_builder_that_is_not_there_is_unavailable(state: Path) -> None:
    engine = local_engine(state, command=("/nowhere/python",))
    with pytest.raises(Unavailable, match="cannot be started"):
        start_build(engine)
    assert sighted(engine).phase is Phase.ABSENT
    engine.close()


def test_stopping_is_for_what_is_alive(state: Path, engine: LocalEngine) -> None:
    build = started_build(engine, "b", "wait")
    stop(engine, build)
    assert build.live is not None
    engine.start(build, build.live)
    awaited(engine, Phase.RUNNING)
    until((folder(state) / "ready").exists)
    child = int((folder(state) / "child").read_text())
    stop(engine, build)
    sighting = awaited(engine, Phase.ENDED)
    assert sighting.result is not None
    assert sighting.result.state is State.CANCELLED
    until(lambda: not alive(child))
    stop(engine, build)


def test_an_id_in_a_folder_that_nothing_locks_is_never_signalled(state: Path, engine: LocalEngine) -> None:
    """The kernel reuses process ids: this id now belongs to another process."""
    build = start_build(engine)
    awaited(engine, Phase.ENDED)
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (folder(state) / "group").write_text(str(bystander.pid))
    stop(engine, build)
    sighted(engine)
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_what_does_not_stop_is_killed(state: Path) -> None:
    later = timedelta()
    engine = local_engine(state, now=lambda: datetime.now(UTC) + later)
    build = start_build(engine, do="stubborn")
    until((folder(state) / "ready").exists)
    child = int((folder(state) / "child").read_text())
    later = timedelta(minutes=10)
    assert sighted(engine).phase is Phase.RUNNING, "the engine sets no time limit"
    later = timedelta()
    stop(engine, build)
    assert sighted(engine).phase is Phase.RUNNING
    later = timedelta(seconds=31)
    assert awaited(engine, Phase.ENDED).result is None
    until(lambda: not alive(child))
    engine.close()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"\xff",
        b'{"state":"running"}',
        b'{"state":"exploded"}',
        b'{"state":"failed","message":"\xff"}',
        b'{"state":"failed","x":' + b"[" * 60000,
        b'{"state":"failed","message":"' + b"x" * 100_000 + b'"}',
    ],
    ids=range(9),
)
def test_a_result_that_is_none_is_no_result(state: Path, engine: LocalEngine, content: bytes) -> None:
    start_build(engine)
    awaited(engine, Phase.ENDED)
    (folder(state) / "result.json").write_bytes(content)
    sighting = sighted(engine)
    assert (sighting.phase, sighting.result) == (Phase.ENDED, None)


def test_an_attempt_whose_folder_is_gone_is_lost_once_it_was_seen(state: Path, engine: LocalEngine) -> None:
    build = start_build(engine)
    started_at = awaited(engine, Phase.ENDED).started_at
    assert build.live is not None
    seen = replace(build.live, started_at=started_at)
    build = engine.write(replace(engine.get("b"), status=replace(build.status, attempts=(seen,))))
    remove(folder(state))
    assert sighted(engine).phase is Phase.LOST


def test_a_folder_of_an_older_record_is_not_taken_for_ours(state: Path, engine: LocalEngine) -> None:
    """A user deleted kiln.db and left the folders: the names repeat, but the builds differ."""
    start_build(engine)
    awaited(engine, Phase.ENDED)
    for path in state.glob("kiln.db*"):
        path.unlink()
    again = local_engine(state)
    build = started_build(again, "b")
    assert sighted(again).phase is Phase.ABSENT
    assert build.live is not None
    again.start(build, build.live)
    awaited(again, Phase.ENDED)
    assert json.loads((folder(state) / "spec.json").read_bytes())["attempt_label"] == f"{build.uid}.1"
    assert len(runs(state)) == 1
    again.close()


def test_a_builder_is_told_of_the_trace_of_its_build_and_of_no_other(state: Path) -> None:
    """The controller's own environment may carry a trace, which must not leak into builds."""
    engine = local_engine(state, environment={**os.environ, "TRACEPARENT": "the controller's", "TRACESTATE": "x=y"})
    try:
        trace = Trace(traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
        for name, of in (("traced", trace), ("other", None)):
            build = started_build(engine, name, "environment")
            build = engine.write(replace(build, status=replace(build.status, trace=of)))
            assert build.live is not None
            engine.start(build, build.live)
            folder = state / "attempts" / f"{name}-1"
            until((folder / "result.json").exists)
            told = json.loads(json.loads((folder / "result.json").read_text())["message"])
            found = {name: told[name] for name in ("TRACEPARENT", "TRACESTATE") if name in told}
            assert found == (of.environment if of else {})
    finally:
        engine.close()


def test_a_builder_gets_the_persons_environment_and_nothing_of_kilns_own(state: Path) -> None:
    ours = {"PATH": os.environ["PATH"], "HOME": "/root", "https_proxy": "http://proxy:1", "AWS_PROFILE": "builds"}
    secret = {"KILN_SECRETS_DIR": "/secrets", "JUPYTERHUB_API_TOKEN": "x", "K_SINK": "http://sink", "PYTHONPATH": "/p"}
    engine = local_engine(state, environment={**ours, **secret, "KILN_FAULT": f"{state}/none"})
    start_build(engine, do="environment")
    sighting = awaited(engine, Phase.ENDED)
    assert sighting.result is not None
    got = json.loads(sighting.result.message or "")
    got.pop("LC_CTYPE", None)  # Python sets it if no locale is set
    assert got == {**ours, "KILN_FAULT": f"{state}/none", "KILN_ATTEMPT_DIR": str(folder(state))}
    engine.close()


def test_an_engine_that_closes_leaves_its_attempts_alone(state: Path, engine: LocalEngine) -> None:
    start_build(engine, do="wait")
    until((folder(state) / "ready").exists)
    engine.close()
    again = local_engine(state)
    assert sighted(again).phase is Phase.RUNNING
    again.close()


def test_forgetting_deletes_all_that_belongs_to_a_build(state: Path, engine: LocalEngine) -> None:
    build = start_build(engine)
    start_build(engine, "b-1")  # this name looks like an attempt of the other build
    awaited_all = time.monotonic() + 20
    while any(sighting.phase is not Phase.ENDED for sighting in engine.observe().sightings):
        assert time.monotonic() < awaited_all
        engine.wait(5)
    settled = engine.write(settled_build(engine.get("b")))
    said = [*engine.log("b", 1)]
    engine.clear_attempts(settled)
    engine.clear_attempts(settled)
    assert {path.name for path in folder(state).iterdir()} == {"lock", "log.gz"}
    assert [*engine.log("b", 1)] == said
    assert engine.get("b") == settled
    engine.forget(settled)
    assert not folder(state).exists()
    with pytest.raises(NotFound):
        engine.get(build.name)
    assert folder(state, "b-1").exists()


@pytest.mark.parametrize("left", [{"log"}, {"log", "log.gz.new"}, {"log", "log.gz"}, {"log.gz"}])
def test_a_log_outlives_its_folder_however_often_packing_is_broken_off(
    state: Path, engine: LocalEngine, left: set[str]
) -> None:
    """After interrupted packing the log is complete, and every offset reads the right lines."""
    build = start_build(engine)
    awaited(engine, Phase.ENDED)
    content = b"".join(line(number) for number in range(1, 5001))
    for name in left:
        (folder(state) / name).write_bytes(gzip.compress(content) if name == "log.gz" else content[:999])
    (folder(state) / "log").unlink()
    if "log" in left:
        (folder(state) / "log").write_bytes(content)
    engine.clear_attempts(build)
    assert {path.name for path in folder(state).iterdir()} == {"lock", "log.gz"}
    assert [one.number for one in engine.log("b", 1)] == [*range(1, 5001)]
    assert [one.number for one in engine.log("b", 1, 4998)] == [4999, 5000]


# ---- Logs -----------------------------------------------------------------------------------------------------------


def line(number: int, text: str = "") -> bytes:
    return msgspec.json.encode({"n": number, "phase": None, "text": text or f"line {number}"}) + b"\n"


def numbers(engine: LocalEngine, after: int = 0) -> list[int]:
    return [one.number for one in engine.log("b", 1, after)]


def test_the_log_of_an_attempt(engine: LocalEngine) -> None:
    start_build(engine)
    awaited(engine, Phase.ENDED)
    lines = list(engine.log("b", 1))
    assert [(one.attempt, one.number, one.phase, one.text) for one in lines] == [
        (1, 1, "build", "one"),
        (1, 2, "build", "two"),
    ]
    assert list(engine.log("b", 2)) == []


def test_a_log_goes_on_where_a_reader_was(state: Path, engine: LocalEngine) -> None:
    """Every offset works, even if line lengths vary and line numbers have gaps."""
    folder(state).mkdir()
    kept = [*range(1, 40), *range(1000, 1040)]
    log = folder(state) / "log"
    log.write_bytes(b"".join(line(n, "x" * (n % 7) ** 4) for n in kept))
    for after in [*range(45), 999, *range(1000, 1045)]:
        assert numbers(engine, after) == [n for n in kept if n > after]


def test_a_torn_line_is_returned_when_it_is_whole(state: Path, engine: LocalEngine) -> None:
    folder(state).mkdir()
    log = folder(state) / "log"
    whole = line(1) + line(2) + line(3)
    for size in range(len(whole) + 1):
        log.write_bytes(whole[:size])
        complete = whole[:size].count(b"\n")
        for after in range(4):
            assert numbers(engine, after) == list(range(after + 1, complete + 1))


def test_what_is_no_line_of_a_builder_is_left_out(state: Path, engine: LocalEngine) -> None:
    folder(state).mkdir()
    strange = b"Traceback\n\n[1]\n\xff\n" + b"[" * 50000 + b"\n" + b'{"n":"1","text":"x"}\n'
    (folder(state) / "log").write_bytes(line(1) + strange + line(2) + strange + line(3))
    for after in range(4):
        assert numbers(engine, after) == list(range(after + 1, 4))


def test_a_log_is_open_only_while_it_is_read(state: Path, engine: LocalEngine) -> None:
    folder(state).mkdir()
    (folder(state) / "log").write_bytes(line(1) * 10)

    def opened() -> bool:
        links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return any(os.path.realpath(path) == str(folder(state) / "log") for path in links)

    lines = engine.log("b", 1)
    assert not opened()
    next(lines)
    assert opened()
    lines.close()  # type: ignore[attr-defined]
    assert not opened()


# ---- The node -------------------------------------------------------------------------------------------------------


def answering(listener: socket.socket, answer: bytes) -> threading.Thread:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(("status", "ready"), [(b"200 OK", True), (b"500 Internal Server Error", False)])
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_the_node_is_ready_while_the_daemon_answers(
    state: Path, family: socket.AddressFamily, status: bytes, ready: bool
) -> None:
    with socket.socket(family) as listener:
        listener.bind(str(state / "d") if family is socket.AF_UNIX else ("127.0.0.1", 0))
        listener.listen()
        where = f"unix://{state}/d" if family is socket.AF_UNIX else f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        thread = answering(listener, b"HTTP/1.0 " + status + b"\r\n\r\nOK")
        engine = local_engine(state, surroundings=Surroundings(docker_host=where))
        (node,) = engine.observe().nodes
        thread.join()
        assert node.ready is ready
        assert (node.why is None) is ready
        assert engine.observe().nodes == (node,), "asked only once in a while"
        engine.close()


@pytest.mark.parametrize("where", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1", "ssh://host", "tcp://host", "x"])
def test_a_node_without_a_daemon_says_why(state: Path, where: str) -> None:
    engine = local_engine(state, surroundings=Surroundings(docker_host=where))
    (node,) = engine.observe().nodes
    assert (node.name, node.ready) == ("local", False)
    assert where in (node.why or "")
    engine.close()
