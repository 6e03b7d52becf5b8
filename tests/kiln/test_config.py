"""The YAML file: its valid contents, and errors that name their place."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.repository import HostKind
from builds.statuses import HostRule
from kiln.config import MAX_SINKS, Config, parse, pod_template, read
from kiln.errors import ConfigError

PREFIX = "private_image_prefix: registry.example/private/\n"
DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode())
    return caught.value.problems


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "sinks: []\n"])
def test_a_file_that_says_nothing_is_the_default(text: str) -> None:
    assert parse(text.encode()) == Config() == read(None)
    assert [trigger.default_branch for trigger in Config().triggers] == [True]


def test_the_example_of_the_docs_is_valid() -> None:
    example = DOCS.read_text().partition("```yaml\n")[2].partition("```")[0]
    config = parse(example.encode())
    assert [trigger.name for trigger in config.triggers] == ["courses"]
    assert [sink.name for sink in config.sinks] == ["hub"]
    assert config.hosts == {"git.example.edu": HostKind.GITLAB}
    assert config.accounts == {"git.example.edu": "kiln"}
    assert config.statuses == {"git.example.edu": HostRule(statuses=True)}
    assert [one.url for one in config.repositories] == ["https://git.example.edu/courses/stats"]


def test_repositories_are_polled_or_not() -> None:
    listed = parse(
        b"repositories: [{url: 'https://a.example/b', poll: 10m}, {url: 'https://a.example/c'}]"
    ).repositories
    assert [(one.url, one.poll) for one in listed] == [("https://a.example/b", 600.0), ("https://a.example/c", None)]


def test_who_may_use_credentials_is_said_or_webhooks_may() -> None:
    rules = parse(
        b"private: [{match: 'https://a.example/*'}, {match: '**', use_by: ['group:staff', 'user:ada b']}]\n"
        b"private_image_prefix: registry.example/private/"
    )
    assert [rule.use_by for rule in rules.private] == [("webhooks",), ("group:staff", "user:ada b")]


def test_no_triggers_is_not_the_default_trigger() -> None:
    assert parse(b"triggers: []").triggers == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- a", "The file must be a mapping of sections"),
        ("a: [", "Line 1: "),
        ("sinks: []\nsinks: []", "Line 2: the key `sinks` is repeated"),
        ("hosts:\n  a.example: {kind: gitlab,\n   kind: gitea}", "Line 3: the key `kind` is repeated"),
        ("sink: []", "sink: unknown section"),
        ("triggers:", "triggers: must be a list"),
        ("triggers: [{name: a, psh: {}}]", "triggers[0]: Object contains unknown field `psh`"),
        ("triggers: [{name: a}, {name: b, push: {branches: main}}]", "triggers[1].push.branches: Expected `array "),
        ("triggers: [{name: a, push: {branches: [main, 1.0]}}]", "triggers[0].push.branches[1]: Expected `str`"),
        ("triggers: [{name: a}, {name: a}]", "triggers: Two triggers have the name 'a'"),
        ("triggers: [{name: a, filters: [{exct: {type: x}}]}]", "triggers: Trigger 'a', filters[0].exct: "),
        ("triggers: [{name: a, build: {image: '{x'}}]", "triggers: Trigger 'a', build.image: A single '{'"),
        ("sinks: [{name: a, url: 'ftp://x/'}]", "sinks[0]: the URL of sink a must be http"),
        ("sinks: [{name: a, url: 'http://x/'}, {name: a, url: 'http://y/'}]", "sinks: there are 2 sinks called a"),
        ("hosts: [a.example]", "hosts: must be a mapping"),
        ("hosts: {'https://a.example': {kind: gitlab}}", "hosts.https://a.example: must be a host name"),
        ("hosts: {a.example: {kind: cvs}}", "hosts.a.example.kind: Invalid enum value 'cvs'"),
        ("insecure_registries: ['http://a.example']", "insecure_registries[0]: must be host:port"),
        ("keep: {per_ref: 3}", "keep: Object missing required field `for`"),
        ("keep: {per_ref: 0, for: 30d}", "keep.per_ref: Expected `int` >= 1"),
        ("keep: {for: soon}", "keep.for: must be a duration such as"),
        ("keep: {for: 30d, each: 2}", "keep: Object contains unknown field `each`"),
        ("keep:", "keep: is empty"),
        ("allowed_images: [1]", "allowed_images[0]: Expected `str`"),
        ("repositories: {}", "repositories: must be a list"),
        ("repositories: [{}]", "repositories[0]: Object missing required field `url`"),
        ("repositories: [{url: 'https://a.example/b', every: 10m}]", "repositories[0]: Object contains unknown field"),
        ("repositories: [{url: 'git@a.example:b'}]", "repositories[0].url: Kiln does not fetch over SSH"),
        (
            "repositories: [{url: 'https://a.example/b', poll: soon}]",
            "repositories[0].poll: must be a duration such as",
        ),
        ("repositories: [{url: 'https://a.example/b', poll: 59}]", "repositories[0].poll: must be at least 1m"),
        ("repositories: [{url: 'https://a.example/b', poll: true}]", "repositories[0].poll: Expected `"),
        (
            "repositories: [{url: 'https://github.com/a/b'}, {url: 'https://github.com/A/b.git'}]",
            "repositories[1].url: this repository is repositories[0] already",
        ),
        (
            f"{PREFIX}private: [{{match: 'a.example/*'}}]",
            "private[0]: The pattern 'a.example/*' has no scheme",
        ),
        (
            f"{PREFIX}private: [{{match: 'https://a.example/*', use_by: [ada]}}]",
            "private[0]: 'ada' is not a user. use_by takes",
        ),
        (
            f"{PREFIX}private: [{{match: 'https://a.example/*', used_by: []}}]",
            "private[0]: Object contains unknown field",
        ),
        ("private: {}", "private: must be a list"),
        ("private: [{match: 'https://a.example/*'}]", "private_image_prefix: must be set, because `private` names"),
        ("repo2docker: []", "repo2docker: Expected `object`"),
        ("repo2docker: {appendx: a}", "repo2docker: Object contains unknown field `appendx`; did you mean appendix?"),
        (
            "repo2docker: {buildpacks: [pip]}",
            "repo2docker.buildpacks[0]: Invalid enum value 'pip'; there are dockerfile,",
        ),
        ("repo2docker: {buildpacks: []}", "repo2docker.buildpacks: Expected `array` of length >= 1"),
        ("repo2docker: {pull: 1}", "repo2docker.pull: Expected `bool`"),
        ("repo2docker: {base_image: 'https://a.example/b'}", "repo2docker.base_image: must be an image such as"),
        (
            "repo2docker: {build_args: {http_proxy: a}}",
            "repo2docker.build_args: The build argument http_proxy is reserved",
        ),
        (
            f"{PREFIX}repo2docker: {{base_image: registry.example/private/base}}",
            "repo2docker.base_image: must not be under private_image_prefix",
        ),
        ("private_image_prefix: [a]", "private_image_prefix: Expected `str | null`"),
        ("a: &a [*a]", "a: unknown section"),
        ("a: !!python/object:os.system {}", "Line 1: could not determine a constructor"),
        ("a: !!bool x", "The file is not YAML"),
        ("[" * 5000, "The file is nested too deeply"),
    ],
)
def test_an_error_names_its_place(text: str, problem: str) -> None:
    (told,) = problems(text)
    assert told.startswith(problem)


def test_all_errors_are_told_together() -> None:
    told = problems("sinks: [{name: a}, {url: 'http://x/'}]\nhosts: {a.example: {}}\nrepositories: [{poll: soon}]\n")
    assert len(told) == 4


def test_a_merge_key_is_no_doubled_key() -> None:
    assert len(parse(b"sinks:\n- &a {name: a, url: 'http://x/'}\n- {<<: *a, name: b}\n").sinks) == 2


def test_a_file_is_named_in_its_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"KILN_CONFIG: .* cannot be read"):
        read(tmp_path / "absent.yaml")
    path = tmp_path / "kiln.yaml"
    path.write_text("sink: []")
    with pytest.raises(ConfigError, match=f"{path}: sink: unknown section"):
        read(path)
    path.write_text("#" * 300_000)
    with pytest.raises(ConfigError, match="larger than 256 KiB"):
        read(path)


@given(st.binary() | st.text(alphabet="[]{}:,&*!<-?|>'\"#%@`\n abtriggesnk0").map(str.encode))
def test_any_file_is_read_or_refused(content: bytes) -> None:
    with suppress(ConfigError):
        parse(content)


# ---- The digest of a file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["KILN_CONFIG", "KILN_POD_TEMPLATE"])
def test_a_file_of_another_content_is_refused(tmp_path: Path, setting: str) -> None:
    file = tmp_path / "file.yaml"
    file.write_bytes(b"hosts: {git.example: {kind: gitlab}}\n")
    known = hashlib.sha256(file.read_bytes()).hexdigest()
    reads = {"KILN_CONFIG": read, "KILN_POD_TEMPLATE": pod_template}[setting]
    assert reads(file, known) == reads(file)
    file.write_bytes(b"hosts: {git.example: {kind: github}}\n")
    with pytest.raises(ConfigError, match=f"does not match {setting}_SHA256"):
        reads(file, known)


def test_a_sink_of_cdevents_chooses_by_either_type() -> None:
    types = "[dev.kiln.build.failed.v1, 'dev.cdevents.build.finished.*', 'dev.cdevents.*']"
    (sink,) = parse(f"sinks: [{{name: a, url: 'http://x/', format: cdevents, types: {types}}}]".encode()).sinks
    assert (sink.format, len(sink.types)) == ("cdevents", 3)


@pytest.mark.parametrize(
    ("sink", "problem"),
    [
        (
            "{types: ['dev.cdevents.build.*']}",
            "types: dev.cdevents.build.* is a type of CDEvents, for which the sink needs `format: cdevents`",
        ),
        (
            "{format: cdevents, types: [dev.cdevents.artifact.published]}",
            ("types: unknown event type dev.cdevents.artifact.published; write dev.cdevents.artifact.published.0.3.0"),
        ),
        ("{format: cdevent}", "format: Invalid enum value 'cdevent'; there are kiln, cdevents"),
    ],
)
def test_types_that_no_event_of_the_format_has(sink: str, problem: str) -> None:
    assert problems(f"sinks: [{{name: a, url: 'http://x/', {sink[1:-1]}}}]") == (f"sinks[0].{problem}",)


def test_sinks_are_as_many_and_their_names_as_long_as_a_record_has_room_for() -> None:
    def sinks(number: int, length: int) -> bytes:
        names = [f"s{n}".ljust(length, "x") for n in range(number)]
        return json.dumps({"sinks": [{"name": name, "url": "https://a.example"} for name in names]}).encode()

    assert len(parse(sinks(MAX_SINKS, 63)).sinks) == MAX_SINKS
    with pytest.raises(ConfigError, match=f"sinks: there are {MAX_SINKS + 1}, and at most {MAX_SINKS}"):
        parse(sinks(MAX_SINKS + 1, 8))
    with pytest.raises(ConfigError, match="at most 63"):
        parse(sinks(1, 64))
