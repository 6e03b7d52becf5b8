"""A stand-in for the builder: it takes the same locks, writes log and result, and ends as the spec says.

`python builder.py SPEC RESULT`. Each run appends a line to `runs`, so a test can count the starts.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["KILN_ATTEMPT_DIR"])
SPEC, RESULT = Path(sys.argv[1]), Path(sys.argv[2])
SUCCESS = {
    "state": "succeeded",
    "commit": "c" * 40,
    "image": {"repository": "r.example/x", "tag": "t", "digest": "sha256:" + "0" * 64},
}


def say(number: int, text: str) -> None:
    print(json.dumps({"n": number, "phase": "build", "text": text}), flush=True)


def end(result: object, status: int = 0) -> None:
    draft = FOLDER / "draft"
    draft.write_text(json.dumps(result))
    draft.replace(RESULT)
    sys.exit(status)


def sleeper(stubborn: bool = False) -> None:
    """Start a child that shares the attempt's lock, as repo2docker does."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)" if stubborn else None
    command = [sys.executable, "-c", code] if code else ["sleep", "600"]
    child = subprocess.Popen(command, close_fds=False)
    (FOLDER / "child").write_text(str(child.pid))


def main() -> None:
    do = json.loads(SPEC.read_bytes())["request"]["build_args"].get("do", "succeed")
    if do == "break":
        sys.exit("cannot even begin")
    own = os.open(FOLDER / "builder.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(own, fcntl.LOCK_EX)
    with (FOLDER / "runs").open("a") as runs:
        runs.write(f"{os.getpid()}\n")
    draft = FOLDER / "group.draft"
    draft.write_text(str(os.getsid(0)))
    draft.replace(FOLDER / "group")
    say(1, "one")
    say(2, "two")
    if do == "succeed":
        end(SUCCESS)
    if do == "environment":
        end({"state": "failed", "message": json.dumps(dict(os.environ))}, 69)
    if do == "wait":
        signal.signal(signal.SIGTERM, lambda *_: end({"state": "cancelled"}, 143))
        sleeper()
    if do == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sleeper(stubborn=True)
    if do in ("wait", "stubborn"):
        (FOLDER / "kiln-left").mkdir()
        (FOLDER / "kiln-left" / "token").write_text("s3cret")
        (FOLDER / "ready").touch()
        while True:
            time.sleep(1)


main()
