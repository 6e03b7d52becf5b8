"""`python -m tests.fuzz [--seconds N] [target…]`: fuzz each target for N seconds.

Findings land in the corpus folder of the target. With atheris, coverage guides the search; without a wheel of it, the
seeds are mutated blindly. Each target runs in a separate process, which ends at its first finding.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
import traceback
from pathlib import Path

import click

REPOSITORY = Path(__file__).parents[2]
FOUND = REPOSITORY / ".cache" / "fuzz"
"""The inputs that atheris kept because they reach new code; the next run starts from them."""


@click.command()
@click.option("--seconds", default=600, show_default=True, help="for each target")
@click.option("--worker", is_flag=True, hidden=True)
@click.argument("names", nargs=-1)
def main(seconds: int, worker: bool, names: tuple[str, ...]) -> None:
    if worker:
        fuzz(names[0], seconds)
        return
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - a worker must not import them before atheris watches

    unknown = set(names) - set(TARGETS)
    if unknown:
        raise click.UsageError(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    failed = []
    for name in names or TARGETS:
        click.echo(f"== {name}, {seconds} s")
        argv = [sys.executable, "-m", "tests.fuzz", "--worker", "--seconds", str(seconds), name]
        if subprocess.run(argv, cwd=REPOSITORY, check=False).returncode:
            failed.append(name)
    if failed:
        raise click.ClickException(f"findings in tests/fuzz/corpus of: {', '.join(failed)}")


def fuzz(name: str, seconds: int) -> None:
    try:
        import atheris  # noqa: PLC0415
    except ImportError:
        mutate(name, seconds)
        return
    with atheris.instrument_imports(include=["eventing", "builds", "handlers", "kiln", "tests.fuzz"]):
        from tests.fuzz.targets import CORPUS, TARGETS  # noqa: PLC0415
    (FOUND / name).mkdir(parents=True, exist_ok=True)
    folders = [str(FOUND / name), str(CORPUS / name)]
    limits = [
        f"-max_total_time={seconds}",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-max_len=16384",
        "-print_final_stats=1",
    ]
    atheris.Setup([name, *limits, f"-artifact_prefix={CORPUS / name}/", *folders], TARGETS[name])
    atheris.Fuzz()


def mutate(name: str, seconds: int) -> None:
    from tests.fuzz.targets import CORPUS, TARGETS  # noqa: PLC0415

    seeds = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    chance = random.Random()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 8)):
            at, other = chance.randrange(len(data) + 1), chance.choice(seeds)
            start = chance.randrange(len(other) + 1)
            piece = chance.choice(
                [b"", chance.randbytes(chance.randint(1, 4)), other[start : start + chance.randint(0, 64)]]
            )
            data[at : at + chance.choice([0, 1, len(piece)])] = piece
        try:
            TARGETS[name](bytes(data))
        except Exception:  # noqa: BLE001 - that is what is looked for
            (CORPUS / name / f"crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
            traceback.print_exc()
            sys.exit(1)


if __name__ == "__main__":
    main()
