"""Use a local engine from a separate process, so that tests can kill it or start several. `main` has the commands."""

import sys
import time
from pathlib import Path

from builds.engines import Submission
from tests.builds.engine_factories import local_engine, new_submission, start_build

STATE = Path(sys.argv[2])


def together(asks: list[Submission]) -> None:
    """Accept each submission in its own transaction, once the test sends a line."""
    engine = local_engine(STATE)
    print("ready", flush=True)
    sys.stdin.readline()
    for one in asks:
        engine.accept([one])


def main() -> None:
    match sys.argv[1], *sys.argv[3:]:
        case "copies", number:
            together([new_submission("b", "the-same")] * int(number))
        case "events", first, number:
            together([new_submission("b", f"event-{n}") for n in range(int(first), int(first) + int(number))])
        case "builds", first, number:
            together([new_submission(f"b{n}", f"event-{n}") for n in range(int(first), int(first) + int(number))])
        case "accept", name:
            local_engine(STATE).accept([new_submission(name)])
        case "start", name:
            engine = local_engine(STATE)
            build = engine.get(name)
            assert build.live is not None
            engine.start(build, build.live)
        case "control", name, do:
            start_build(local_engine(STATE), name, do)
            print("started", flush=True)
            time.sleep(600)
        case other:
            raise SystemExit(f"unknown: {other}")


main()
