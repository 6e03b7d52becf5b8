"""Stand-ins for the programs that the shell blocks of the documentation call, for the runs of `tests/parts/reader.py`.

Each knows the subcommands and options of the real program from that program's documentation, and refuses others. It
does the real thing where that needs no cluster, daemon or public host. `kiln` is Kiln's own command, and `make` is make
with `--dry-run`. `helm` checks values with the chart's schema, and renders the chart where helm is installed.

    python -m tests.parts.standins PROGRAM [ARGUMENT...]

`STANDINS` names the folder with the state of a run. `state.json` lists the names and objects that exist so far, and
`used` the programs that were called. `complaints` holds each refusal, also where the block ignores exit statuses.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "chart"
GOLDEN = ROOT / "tests" / "cluster" / "chart" / "golden"

Words = Sequence[str]
State = dict[str, Any]


class Wrong(Exception):
    """The real program would refuse this; the message says why."""


class Parser(argparse.ArgumentParser):
    """Takes no abbreviated options, and raises Wrong."""

    def __init__(self, prog: str, **more: Any) -> None:
        super().__init__(prog=prog, add_help=False, allow_abbrev=False, **more)

    def error(self, message: str) -> Any:
        raise Wrong(f"{self.prog}: {message}")


def check(condition: object, message: str) -> None:
    if not condition:
        raise Wrong(message)


# The state of a run -------------------------------------------------------------------------------------------------


def folder() -> Path:
    return Path(os.environ["STANDINS"])


def state() -> State:
    loaded: State = json.loads((folder() / "state.json").read_text())
    return loaded


def keep(changed: State) -> None:
    (folder() / "state.json").write_text(json.dumps(changed))


def namespace(known: State, name: str) -> State:
    check(name in known["namespaces"], f"there is no namespace {name}")
    found: State = known["namespaces"][name]
    return found


# Kubernetes ---------------------------------------------------------------------------------------------------------

LABEL = re.compile(r"(?:[a-z0-9.-]+/)?[A-Za-z0-9._-]+=[A-Za-z0-9._-]*")
LEVELS = ("privileged", "baseline", "restricted")
"""https://kubernetes.io/docs/concepts/security/pod-security-admission/"""
SHORT = {"ds": "DaemonSet", "deploy": "Deployment", "svc": "Service"}


def rendered() -> Iterator[Mapping[str, Any]]:
    """The objects of the chart, in all variants that its tests keep."""
    import yaml  # noqa: PLC0415  (most stand-ins do without)

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for path in sorted(GOLDEN.glob("*.yaml")):
        yield from (one for one in yaml.load_all(path.read_text(), loader) if one)


def resource(one: Mapping[str, Any]) -> str:
    """The name by which kubectl finds objects of this kind: `<plural>.<group>`, lower case."""
    group, slash, _ = one["apiVersion"].partition("/")
    return f"{one['kind'].lower()}s" + (f".{group}" if slash else "")


def kubectl(words: Words) -> int:
    end = list(words).index("--") if "--" in words else len(words)
    found = kubectl_parser().parse_args(words[:end])
    known = state()
    done = {"create": created, "label": labelled, "get": got, "exec": executed}[found.command]
    status = done(known, found, words[end + 1 :])
    keep(known)
    return status


def kubectl_parser() -> Parser:
    whole = Parser("kubectl")
    whole.add_argument("-n", "--namespace", default="default")
    commands = whole.add_subparsers(dest="command", required=True, parser_class=Parser)
    add_create(commands.add_parser("create"))
    labels = commands.add_parser("label")
    labels.add_argument("kind", choices=["namespace"])
    labels.add_argument("name")
    labels.add_argument("labels", nargs="+")
    gets = commands.add_parser("get")
    gets.add_argument("resource")
    gets.add_argument("name", nargs="?")
    executes = commands.add_parser("exec")
    executes.add_argument("object")
    executes.add_argument("-c", "--container")
    return whole


def add_create(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, parser_class=Parser)
    kinds.add_parser("namespace").add_argument("name")
    secrets = kinds.add_parser("secret").add_subparsers(dest="type", required=True, parser_class=Parser)
    registry = secrets.add_parser("docker-registry")
    registry.add_argument("name")
    for option in ("server", "username", "password"):
        registry.add_argument(f"--docker-{option}", required=True)
    generic = secrets.add_parser("generic")
    generic.add_argument("name")
    for option in ("literal", "file"):
        generic.add_argument(f"--from-{option}", action="append", default=[])


def created(known: State, found: argparse.Namespace, _: Words) -> int:
    if found.kind == "namespace":
        check(found.name not in known["namespaces"], f"the namespace {found.name} exists already")
        known["namespaces"][found.name] = {"labels": {}, "secrets": {}, "releases": []}
        return 0
    place = namespace(known, found.namespace)
    check(found.name not in place["secrets"], f"the Secret {found.name} exists already")
    place["secrets"][found.name] = [".dockerconfigjson"] if found.type == "docker-registry" else keys(found)
    return 0


def keys(found: argparse.Namespace) -> list[str]:
    """The keys of a generic Secret."""
    pairs = [pair.partition("=") for pair in found.from_literal]
    check(all(key and value for key, _, value in pairs), f"--from-literal={found.from_literal}: write key=value")
    files = [Path(given.rpartition("=")[2]) for given in found.from_file]
    check(all(file.is_file() for file in files), f"--from-file={found.from_file}: there is no such file")
    return [*(key for key, _, _ in pairs), *(file.name for file in files)]


def labelled(known: State, found: argparse.Namespace, _: Words) -> int:
    place = namespace(known, found.name)
    for label in found.labels:
        check(LABEL.fullmatch(label), f"{label} is no label")
        name, _, value = label.partition("=")
        pod_security = name.startswith("pod-security.kubernetes.io/")
        check(not pod_security or value in LEVELS, f"{label}: the levels are {', '.join(LEVELS)}")
        place["labels"][name] = value
    return 0


def got(known: State, found: argparse.Namespace, _: Words) -> int:
    check(namespace(known, found.namespace)["releases"], f"nothing is installed in {found.namespace}")
    names = {one["metadata"]["name"] for one in rendered() if resource(one) == found.resource}
    check(names, f"the chart makes no {found.resource}")
    check(found.name is None or found.name in names, f"the chart makes no {found.resource} {found.name}")
    print("\n".join(sorted(names)))
    return 0


def executed(known: State, found: argparse.Namespace, inside: Words) -> int:
    check(namespace(known, found.namespace)["releases"], f"nothing is installed in {found.namespace}")
    short, _, name = found.object.partition("/")
    pods = [one["spec"]["template"]["spec"] for one in rendered() if is_called(one, SHORT.get(short, short), name)]
    check(pods, f"the chart makes no {found.object}")
    containers = [container["name"] for pod in pods for container in pod["containers"]]
    check(found.container in (None, *containers), f"{found.object} has no container {found.container}")
    return inner(inside)


def is_called(one: Mapping[str, Any], kind: str, name: str) -> bool:
    return (str(one["kind"]).lower(), one["metadata"]["name"]) == (kind.lower(), name)


def inner(words: Words) -> int:
    """A command in a container. A script is only parsed: it needs the container's files."""
    check(words, "kubectl exec: no command after --")
    if words[:2] == ["sh", "-c"]:
        return subprocess.run(["sh", "-n", "-c", words[2]], check=False).returncode
    return subprocess.run(words, check=False).returncode


def nc(words: Words) -> int:
    """netcat of a container: public names answer, the link-local address of a cloud's metadata does not."""
    parser = Parser("nc")
    parser.add_argument("-z", action="store_true", required=True)
    parser.add_argument("-w", type=int, required=True)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    return int(parser.parse_args(words).host.startswith("169.254."))


def helm(words: Words) -> int:
    whole = Parser("helm")
    commands = whole.add_subparsers(dest="command", required=True, parser_class=Parser)
    for name in ("install", "upgrade", "test", "uninstall"):
        command = commands.add_parser(name)
        command.add_argument("-n", "--namespace", default="default")
        command.add_argument("--timeout")
        command.add_argument("release")
        if name in ("install", "upgrade"):
            command.add_argument("chart", type=Path)
            command.add_argument("-f", "--values", type=Path, required=True)
            command.add_argument("--wait", action="store_true")
    found = whole.parse_args(words)
    known = state()
    place = namespace(known, found.namespace)
    if found.command == "install":
        check(found.release not in place["releases"], f"{found.release} is installed already")
        place["releases"].append(found.release)
    check(found.release in place["releases"], f"there is no release {found.release} in {found.namespace}")
    if found.command in ("install", "upgrade"):
        can_install(place, found)
    if found.command == "uninstall":
        place["releases"].remove(found.release)
    keep(known)
    return 0


def can_install(place: State, found: argparse.Namespace) -> None:
    """Raises Wrong where the chart's schema or the cluster would refuse these values."""
    import jsonschema  # noqa: PLC0415
    import yaml  # noqa: PLC0415

    from tests.cluster.chart.helm import merged  # noqa: PLC0415

    check((found.chart / "Chart.yaml").is_file(), f"{found.chart} is no chart")
    given = yaml.safe_load(found.values.read_text())
    whole = merged(yaml.safe_load((CHART / "values.yaml").read_text()), given)
    try:
        jsonschema.validate(whole, json.loads((CHART / "values.schema.json").read_text()))
    except jsonschema.ValidationError as error:
        raise Wrong(f"{found.values}: {error.json_path}: {error.message}") from None
    absent = {*secrets_in(given)} - {*place["secrets"]}
    check(not absent, f"{found.values} names Secrets that do not exist: {', '.join(sorted(absent))}")
    level = place["labels"].get("pod-security.kubernetes.io/enforce")
    check(level in (None, "privileged"), f"the namespace {found.namespace} does not admit privileged pods")
    if real := shutil.which("helm", path=os.environ["REAL_PATH"]):
        render = [real, "template", found.release, str(found.chart), f"--values={found.values}"]
        done = subprocess.run([*render, f"--namespace={found.namespace}"], check=False, capture_output=True, text=True)
        check(done.returncode == 0, done.stderr)


def secrets_in(values: object) -> Iterator[str]:
    """The names of `existingSecret` in values."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from [str(value)] if name == "existingSecret" else secrets_in(value)


# Programs of this machine ---------------------------------------------------------------------------------------------


def docker(words: Words) -> int:
    whole = Parser("docker")
    buildx = whole.add_subparsers(dest="command", required=True, parser_class=Parser).add_parser("buildx")
    commands = buildx.add_subparsers(dest="subcommand", required=True, parser_class=Parser)
    imagetools = commands.add_parser("imagetools").add_subparsers(dest="action", required=True, parser_class=Parser)
    imagetools.add_parser("inspect").add_argument("image")
    build = commands.add_parser("build")
    build.add_argument("--build-arg", action="append", default=[])
    build.add_argument("-t", "--tag")
    build.add_argument("--load", action="store_true")
    build.add_argument("context", type=Path)
    found = whole.parse_args(words)
    if found.subcommand == "build":
        text = (found.context / "Dockerfile").read_text()
        known = {*re.findall(r"^ARG (\w+)", text, re.MULTILINE)}
        unknown = {argument.partition("=")[0] for argument in found.build_arg} - known
        check(not unknown, f"the Dockerfile has no ARG {', '.join(sorted(unknown))}")
    return 0


def make(words: Words) -> int:
    """Prints what make would do. make itself takes any variable; here it must be one of the Makefile."""
    known = {*re.findall(r"^(\w+) [?:]?=", (ROOT / "Makefile").read_text(), re.MULTILINE)}
    given = {word.partition("=")[0] for word in words if "=" in word}
    check(given <= known, f"the Makefile has no variable {', '.join(sorted(given - known))}")
    done = subprocess.run(["make", "--dry-run", *words], env=outside(), check=False, capture_output=True, text=True)
    check(done.returncode == 0, done.stderr)
    return 0


def pip(words: Words) -> int:
    import tomllib  # noqa: PLC0415

    whole = Parser("pip")
    install = whole.add_subparsers(dest="command", required=True, parser_class=Parser).add_parser("install")
    install.add_argument("requirements", nargs="+")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in whole.parse_args(words).requirements:
        name, _, extras = requirement.rstrip("]").partition("[")
        check(name == project["name"], f"{name} is not Kiln's name")
        unknown = {*filter(None, extras.split(","))} - {*project["optional-dependencies"]}
        check(not unknown, f"{name} has no extra {', '.join(sorted(unknown))}")
    return 0


def sudo(words: Words) -> int:
    return subprocess.run(list(words), check=False).returncode


def systemctl(words: Words) -> int:
    whole = Parser("systemctl")
    whole.add_argument("--user", action="store_true")
    enable = whole.add_subparsers(dest="command", required=True, parser_class=Parser).add_parser("enable")
    enable.add_argument("--now", action="store_true")
    enable.add_argument("unit", choices=["podman.socket"])
    whole.parse_args(words)
    return 0


def gh(words: Words) -> int:
    """https://docs.github.com/rest/repos/webhooks#get-a-delivery-for-a-repository-webhook"""
    whole = Parser("gh")
    whole.add_subparsers(dest="command", required=True, parser_class=Parser).add_parser("api").add_argument("endpoint")
    endpoint = whole.parse_args(words).endpoint
    known = re.fullmatch(r"repos/[\w.-]+/[\w.-]+/hooks/\d+/deliveries/\d+", endpoint)
    check(known, f"GitHub's API has no endpoint {endpoint}")
    print((folder() / "delivery.json").read_text())
    return 0


PREDICATES = ("slsaprovenance", "slsaprovenance02", "slsaprovenance1", "link", "spdx", "spdxjson", "cyclonedx", "vuln")
"""https://github.com/sigstore/cosign/blob/main/doc/cosign_verify-attestation.md"""


def cosign(words: Words) -> int:
    whole = Parser("cosign")
    verify = whole.add_subparsers(dest="command", required=True, parser_class=Parser).add_parser("verify-attestation")
    verify.add_argument("--key", type=Path, required=True)
    verify.add_argument("--insecure-ignore-tlog", action="store_true")
    verify.add_argument("--type", choices=PREDICATES)
    verify.add_argument("image")
    found = whole.parse_args(words)
    check(found.key.is_file(), f"there is no key {found.key}")
    check("PUBLIC KEY" in found.key.read_text(), f"{found.key} is no public key")
    return 0


# Kiln -----------------------------------------------------------------------------------------------------------------


def outside() -> dict[str, str]:
    """The environment in which the real programs are found."""
    return {**os.environ, "PATH": os.environ["REAL_PATH"]}


def kiln(words: Words) -> int:
    """Kiln's own command. `state.json` says which names stand for others; `serve` ends when both processes are
    ready."""
    command = [sys.executable, "-m", "kiln", *map(renamed, words)]
    if words[:1] == ["serve"]:
        return serve(command)
    done = subprocess.run(command, check=False)
    if words[:1] == ["doctor"]:  # what is wrong with this very machine is not the page's fault
        return 0 if done.returncode in (0, 1) else done.returncode
    check(done.returncode == 0, f"kiln {' '.join(words)} ended with status {done.returncode}")
    return 0


def renamed(word: str) -> str:
    for name, other in state()["names"].items():
        word = word.replace(name, other)
    return word


def serve(command: Words) -> int:
    from tests.parts.kiln import get, until  # noqa: PLC0415
    from tests.parts.registry import free_pair, free_port  # noqa: PLC0415

    ops = free_pair()
    environment = {**os.environ, "PORT": str(free_port()), "KILN_OPS_PORT": str(ops)}
    log = folder() / "serve.log"
    with log.open("wb") as out:
        serving = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    try:
        ready = [f"http://127.0.0.1:{port}/readyz" for port in (ops, ops + 1)]
        until(lambda: serving.poll() is not None or all(get(url)[0] == 200 for url in ready))
        check(serving.poll() is None, f"kiln serve ended: {log.read_text()}")
    finally:
        serving.send_signal(signal.SIGTERM)
        status = serving.wait(30)
    return status


PROGRAMS: Mapping[str, Callable[[Words], int]] = {
    "cosign": cosign,
    "docker": docker,
    "gh": gh,
    "helm": helm,
    "kiln": kiln,
    "kubectl": kubectl,
    "make": make,
    "nc": nc,
    "pip": pip,
    "sudo": sudo,
    "systemctl": systemctl,
}


def main(name: str, words: Words) -> int:
    with (folder() / "used").open("a") as used:
        used.write(f"{name}\n")
    try:
        return PROGRAMS[name](words)
    except Wrong as wrong:
        complaint = f"`{name} {' '.join(words)}`: {wrong}"
    with (folder() / "complaints").open("a") as complaints:
        complaints.write(f"{complaint}\n")
    print(complaint, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
