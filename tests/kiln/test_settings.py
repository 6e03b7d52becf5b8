"""The settings in the environment: their table, defaults and errors, and the requirement of authentication."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiln import wiring
from kiln.errors import KilnError, SettingsError
from kiln.quantities import LONGEST, duration, size
from kiln.settings import SETTINGS, Setting, Settings, for_web, read

LEAST = {"KILN_IMAGE_PREFIX": "registry.example/org/"}
DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def problems(**environ: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        read(LEAST | environ)
    return caught.value.problems


def test_the_least_that_must_be_set_is_the_image_prefix() -> None:
    with pytest.raises(SettingsError, match="KILN_IMAGE_PREFIX: must be set"):
        read({})
    assert read(LEAST).image_prefix == "registry.example/org/"


def test_defaults_are_those_of_the_table() -> None:
    settings = read(LEAST)
    assert (settings.engine, settings.host, settings.port, settings.base_path) == ("local", "127.0.0.1", 8000, "/")
    assert (settings.ops_port_of("web"), settings.ops_port_of("controller")) == (9090, 9091)
    assert (settings.build_timeout, settings.delivery_period, settings.history) == (3600, 86400, 7 * 86400)
    assert (settings.max_body, settings.max_viewers, settings.threads) == (2**20, 112, 160)
    assert settings.state_dir == Path("~/.local/state/kiln").expanduser()
    assert settings.event_source == "/kiln"


def test_every_row_is_a_field_and_every_field_a_row() -> None:
    decided = {"hub", "loopback_only"}
    assert {setting.field for setting in SETTINGS} == {*Settings.__struct_fields__} - decided


def documented(setting: Setting) -> str:
    """Return the row of a setting in docs/settings.md."""
    default = f"`{setting.default}`" if setting.default else ""
    return f"| `{setting.name}` | {default} | {setting.says} |"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_documented(setting: Setting) -> None:
    assert documented(setting) in DOCS.read_text().splitlines(), "docs/settings.md lacks this row"


def test_the_docs_name_no_setting_that_there_is_not() -> None:
    known = {setting.name for setting in SETTINGS}
    assert set(re.findall(r"`(KILN_[A-Z_]+)`", DOCS.read_text())) <= known


def test_an_empty_value_is_an_unset_one() -> None:
    assert read(LEAST | {"KILN_HOST": "", "KILN_AUTH": "", "PORT": ""}) == read(LEAST)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("KILN_ALLOWED_REPOSITORY", "KILN_ALLOWED_REPOSITORIES"),
        ("KILN_IMAGEPREFIX", "KILN_IMAGE_PREFIX"),
        ("KILN_MAX_QUEUE", "KILN_MAX_QUEUED"),
        ("KILN_ATUH", "KILN_AUTH"),
        ("KILN_PORT", "PORT"),
    ],
)
def test_an_unknown_name_is_an_error_that_suggests_the_nearest(typo: str, meant: str) -> None:
    assert problems(**{typo: "x"}) == (f"{typo}: unknown setting; did you mean {meant}?",)


def test_a_name_like_no_other_suggests_nothing() -> None:
    assert problems(KILN_ZZZZZZZZZZZZ="x") == ("KILN_ZZZZZZZZZZZZ: unknown setting",)


def test_what_kubernetes_injects_for_services_is_not_ours() -> None:
    injected = {
        "KILN_SERVICE_HOST": "10.0.0.1",
        "KILN_SERVICE_PORT": "80",
        "KILN_SERVICE_PORT_HTTP": "80",
        "KILN_PORT": "tcp://10.0.0.1:80",
        "KILN_PORT_80_TCP": "tcp://10.0.0.1:80",
        "KILN_PORT_80_TCP_PROTO": "tcp",
        "KILN_PORT_80_TCP_PORT": "80",
        "KILN_PORT_80_TCP_ADDR": "10.0.0.1",
        "KILN_WEB_SERVICE_HOST": "10.0.0.1",
        "KILN_WEB_SERVICE_PORT_OPS": "9090",
        "KILN_WEB_PORT_9090_TCP_ADDR": "10.0.0.1",
        "KILN_ANYTHING": "tcp://10.0.0.1:80",
    }
    assert read(LEAST | injected) == read(LEAST)


def test_a_name_in_the_table_is_always_ours() -> None:
    assert problems(KILN_OPS_PORT="tcp://10.0.0.1:80") == ("KILN_OPS_PORT: must be a whole number from 0 to 65535",)


def test_all_errors_are_told_together() -> None:
    told = problems(KILN_TYPO_OF_MINE="x", PORT="http", KILN_BUILD_TIMEOUT="soon", KILN_LOG_LEVEL="loud")
    assert [problem.partition(":")[0] for problem in told] == [
        "KILN_TYPO_OF_MINE",
        "PORT",
        "KILN_BUILD_TIMEOUT",
        "KILN_LOG_LEVEL",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KILN_IMAGE_PREFIX", "noregistry"),
        ("KILN_IMAGE_PREFIX", "registry.example/Org/"),
        ("KILN_IMAGE_PREFIX", "https://registry.example/org/"),
        ("KILN_IMAGE_PREFIX", "registry.example/org:tag"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "٣"),
        ("KILN_HOST", "127.0.0.1:80"),
        ("KILN_BASE_PATH", "/a/../b"),
        ("KILN_EVENT_SOURCE", "our kiln"),
        ("KILN_EVENT_SOURCE", "/kiln/%zz"),
        ("KILN_PUBLIC_URL", "https://kiln.example/a b"),
        ("KILN_PUBLIC_URL", "https://köln.example/"),
        ("KILN_PUBLIC_URL", "kiln.example"),
        ("KILN_PUBLIC_URL", "https://user:pw@kiln.example/"),
        ("KILN_PUBLIC_URL", "https://[::1"),
        ("KILN_MAX_BODY", "1"),
        ("KILN_MAX_BODY", "1.5MiB"),
        ("KILN_BUILD_TIMEOUT", "0"),
        ("KILN_HISTORY", "99999d"),
        ("KILN_SUPERSEDE", "sometimes"),
        ("KILN_MAX_ATTEMPTS", "0"),
        ("KILN_AUTH", "token,none"),
        ("KILN_AUTH", ","),
        ("KILN_AUTH", "password"),
        ("KILN_STATE_DIR", "/a\nb"),
    ],
)
def test_a_malformed_value_is_refused_by_name(name: str, value: str) -> None:
    assert all(problem.startswith(f"{name}: must ") for problem in problems(**{name: value}))


ISSUER = {"KILN_OIDC_ISSUER": "https://issuer.example", "KILN_OIDC_AUDIENCE": "kiln, other"}
CLUSTER = {
    "KILN_OIDC_EVENTS_ISSUER": "https://kubernetes.default.svc.cluster.local",
    "KILN_OIDC_EVENTS_AUDIENCE": "kiln-events",
}
NEEDS = ["KILN_AUTH: oidc needs KILN_OIDC_ISSUER", "KILN_AUTH: oidc needs KILN_OIDC_AUDIENCE"]


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"KILN_AUTH": "oidc"}, NEEDS),
        ({"KILN_AUTH": "oidc", **CLUSTER}, NEEDS),
        ({"KILN_AUTH": "none", "KILN_EVENTS_AUTH": "oidc"}, ["KILN_EVENTS_AUTH: oidc needs"] * 2),
        ({"KILN_AUTH": "oidc", **ISSUER}, []),
        ({"KILN_AUTH": "none", "KILN_EVENTS_AUTH": "oidc", **CLUSTER}, []),
        ({"KILN_AUTH": "none", "KILN_EVENTS_AUTH": "network,oidc", **ISSUER}, []),
        *(
            ({"KILN_AUTH": "oidc", **ISSUER, "KILN_OIDC_ISSUER": url}, ["KILN_OIDC_ISSUER: must"])
            for url in (
                "http://issuer.example",
                "http://8.8.8.8",
                "issuer.example",
                "https://a@b/",
                "http://x.svc.evil",
            )
        ),
        *(
            ({"KILN_AUTH": "oidc", **ISSUER, "KILN_OIDC_ISSUER": url}, [])
            for url in ("http://127.0.0.1:5556/dex", "http://dex.auth.svc:5556", "http://10.0.0.1", "http://localhost")
        ),
    ],
    ids=str,
)
def test_oidc_has_to_be_told_of_whom(given: dict[str, str], wrong: list[str]) -> None:
    found = problems(**given) if wrong else []
    assert [problem[: len(said)] for problem, said in zip(found, wrong, strict=True)] == wrong
    if not wrong:
        settings = read(LEAST | given)
        assert settings.oidc_events_issuer
        assert settings.oidc_events_audience


def test_who_sends_events_is_a_person_where_the_same_issuer_says_who_people_are() -> None:
    named = {"KILN_OIDC_SUBJECTS": "a,b*"}
    for chosen, people in (
        ({"KILN_AUTH": "oidc", **ISSUER}, True),
        ({"KILN_AUTH": "oidc", **ISSUER, **named}, True),
        ({"KILN_AUTH": "oidc", **ISSUER, **CLUSTER, **named}, False),
        ({"KILN_AUTH": "none", "KILN_EVENTS_AUTH": "oidc", **ISSUER}, True),
        ({"KILN_AUTH": "none", "KILN_EVENTS_AUTH": "oidc", **ISSUER, **named}, False),
    ):
        assert read(LEAST | chosen).senders_are_people is people


def test_each_issuer_has_threads_that_may_wait_for_it() -> None:
    without = read(LEAST | {"KILN_AUTH": "none"}).threads
    one = read(LEAST | {"KILN_AUTH": "oidc", **ISSUER}).threads
    two = read(LEAST | {"KILN_AUTH": "oidc", **ISSUER, **CLUSTER}).threads
    assert (one - without, two - one) == (32, 32)


def test_a_cluster_has_to_be_told_which_installation_this_is() -> None:
    assert [problem.split(":")[0] for problem in problems(KILN_ENGINE="kubernetes")] == ["KILN_INSTANCE", "KILN_ANCHOR"]
    (problem,) = problems(KILN_ENGINE="kubernetes", KILN_INSTANCE="kiln", KILN_ANCHOR="kiln")
    assert "must be <namespace>/<release>" in problem
    cluster = {"KILN_ENGINE": "kubernetes", "KILN_INSTANCE": "hub/kiln", "KILN_ANCHOR": "kiln"}
    assert read(LEAST | cluster).anchor
    (problem,) = problems(**cluster, KILN_IMAGE_PREFIX="localhost/kiln/")
    assert problem.startswith("KILN_IMAGE_PREFIX: localhost/kiln/ names no registry")


def test_images_of_a_cluster_need_a_registry(tmp_path: Path) -> None:
    file = tmp_path / "kiln.yaml"
    file.write_text("private_image_prefix: localhost/private/\nallowed_images: ['localhost/**']\n")
    wiring.load(LEAST | {"KILN_CONFIG": str(file)})
    cluster = {"KILN_ENGINE": "kubernetes", "KILN_INSTANCE": "hub/kiln", "KILN_ANCHOR": "kiln"}
    with pytest.raises(KilnError) as caught:
        wiring.load(LEAST | cluster | {"KILN_CONFIG": str(file)})
    assert [problem.partition(" names no registry")[0] for problem in caught.value.problems] == [
        "private_image_prefix: localhost/private/",
        "allowed_images[0]: localhost/**",
    ]


def test_a_relative_path_is_from_here_for_builders_too() -> None:
    settings = read(LEAST | {"KILN_SECRETS_DIR": "secrets", "KILN_REGISTRY_CONFIG": "config.json"})
    assert (settings.secrets_dir, settings.registry_config) == (Path.cwd() / "secrets", Path.cwd() / "config.json")


def test_a_base_path_gets_its_slashes() -> None:
    settings = read(LEAST | {"KILN_BASE_PATH": "services/binder", "KILN_AUTH": "none"})
    assert settings.base_path == "/services/binder/"


@pytest.mark.parametrize("path", ["/a%40b/", "/caf%C3%A9/x%20y/", "/user/ada@uni/~kiln+1/"])
def test_a_base_path_keeps_its_encoding(path: str) -> None:
    assert read(LEAST | {"KILN_BASE_PATH": path, "KILN_AUTH": "none"}).base_path == path


@pytest.mark.parametrize(
    "path",
    ["/a b/", "/caf\xe9/", "/a%2/", "/%zz/", "/%2e%2E/", "/a/../", "/%2F/", "/%00/", "/%ff/", "/%3Cx%3E/", "/%5C/"],
)
def test_a_base_path_that_proxies_read_differently_is_refused(path: str) -> None:
    with pytest.raises(SettingsError, match="KILN_BASE_PATH: must be a path"):
        read(LEAST | {"KILN_BASE_PATH": path, "KILN_AUTH": "none"})


def test_a_service_mesh_of_sinks_is_handed_on() -> None:
    assert read(LEAST).k_sink_format == "kiln"
    assert read(LEAST | {"KILN_K_SINK_FORMAT": "cdevents"}).k_sink_format == "cdevents"
    assert read(LEAST | {"K_SINK": "http://sink.example/"}).sink_binding == {"K_SINK": "http://sink.example/"}


# Authentication. ---------------------------------------------------------------------------------------------------

EXPOSED = [
    {"KILN_HOST": "0.0.0.0"},
    {"KILN_HOST": "::"},
    {"KILN_HOST": "kiln.example"},
    {"KILN_BASE_PATH": "/services/binder/"},
    {"KILN_PUBLIC_URL": "https://kiln.example/"},
    {"JUPYTERHUB_API_TOKEN": "x"},
    {"JUPYTERHUB_SERVICE_PREFIX": ""},
]
ENCLOSED = [
    {},
    {"KILN_HOST": "localhost"},
    {"KILN_HOST": "127.8.9.10"},
    {"KILN_HOST": "::1"},
    {"KILN_BASE_PATH": "/"},
    {"KILN_PUBLIC_URL": "http://localhost:8000/"},
    {"KILN_PUBLIC_URL": "http://127.0.0.1:8000/"},
    {"KILN_PUBLIC_URL": "http://[::1]:8000/"},
]


@pytest.mark.parametrize("environ", EXPOSED, ids=str)
def test_where_something_can_reach_in_it_must_be_said_who_may(environ: dict[str, str]) -> None:
    (problem,) = problems(**environ)
    assert problem.startswith("KILN_AUTH: must be set, because ")
    assert "choose hub (" in problem
    assert "or none" in problem


@pytest.mark.parametrize("environ", EXPOSED, ids=str)
def test_none_can_be_said_in_so_many_words(environ: dict[str, str]) -> None:
    settings = read(LEAST | environ | {"KILN_AUTH": "none"})
    assert (settings.auth, settings.events_auth, settings.loopback_only) == (("none",), ("none",), False)


@pytest.mark.parametrize("environ", ENCLOSED, ids=str)
def test_where_nothing_can_reach_in_unset_is_this_machines_token(environ: dict[str, str]) -> None:
    settings = read(LEAST | environ)
    assert (settings.auth, settings.events_auth, settings.loopback_only) == (("local",), ("local",), True)


def test_events_are_let_in_as_everybody_unless_it_is_said() -> None:
    settings = read(LEAST | {"KILN_AUTH": "token", "KILN_SECRETS_DIR": "/s"})
    assert settings.events_auth == ("token",)
    settings = read(LEAST | {"KILN_AUTH": "token", "KILN_SECRETS_DIR": "/s", "KILN_EVENTS_AUTH": "network"})
    assert settings.events_auth == ("network",)


def test_who_may_post_events_does_not_say_who_may_use_the_api() -> None:
    (problem,) = problems(KILN_HOST="0.0.0.0", KILN_EVENTS_AUTH="none")
    assert problem.startswith("KILN_AUTH: must be set")


def test_tokens_need_a_folder_of_secrets() -> None:
    assert problems(KILN_AUTH="token") == (
        "KILN_AUTH: token needs KILN_SECRETS_DIR, a folder with api-tokens/<name> in it",
    )


# As a service of a JupyterHub. ---------------------------------------------------------------------------------------

TOLD = {
    "JUPYTERHUB_SERVICE_NAME": "binder",
    "JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api",
    "JUPYTERHUB_API_TOKEN": "canary",
}
SERVED = LEAST | TOLD | {"KILN_AUTH": "hub"}


def test_what_a_hub_tells_its_services_is_enough() -> None:
    more = {"JUPYTERHUB_SERVICE_PREFIX": "/services/binder/", "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:10101"}
    settings = read(SERVED | more)
    for_web(settings)
    assert (settings.auth, settings.events_auth) == (("hub",), ("hub",))
    assert (settings.base_path, settings.port) == ("/services/binder/", 10101)
    assert settings.hub is not None
    assert settings.hub.client_id == "service-binder"
    assert settings.hub.access_scopes == ("access:services!service=binder",)
    assert settings.hub.authorize_url == "/hub/api/oauth2/authorize"
    own = read(SERVED | more | {"KILN_BASE_PATH": "/kiln/", "PORT": "8001"})
    assert (own.base_path, own.port) == ("/kiln/", 8001)


def test_a_hub_may_be_elsewhere() -> None:
    more = {
        "JUPYTERHUB_BASE_URL": "/jupyter/",
        "JUPYTERHUB_HOST": "https://hub.example",
        "JUPYTERHUB_CLIENT_ID": "kiln",
        "JUPYTERHUB_OAUTH_CALLBACK_URL": "https://kiln.example/oauth_callback",
        "JUPYTERHUB_OAUTH_ACCESS_SCOPES": '["access:services!service=binder", "custom:kiln"]',
    }
    hub = read(SERVED | more).hub
    assert hub is not None
    assert hub.authorize_url == "https://hub.example/jupyter/hub/api/oauth2/authorize"
    assert (hub.client_id, hub.callback_url) == ("kiln", "https://kiln.example/oauth_callback")
    assert hub.access_scopes == ("access:services!service=binder", "custom:kiln")


@pytest.mark.parametrize("missing", TOLD)
def test_web_is_refused_without_a_hub_and_the_controller_needs_none(missing: str) -> None:
    for name in ("KILN_AUTH", "KILN_EVENTS_AUTH"):
        environ = {**SERVED, "KILN_AUTH": "none", name: "hub"}
        settings = read({key: value for key, value in environ.items() if key != missing})
        with pytest.raises(SettingsError, match=f"{name}: hub needs JUPYTERHUB_API_URL, JUPYTERHUB_API_TOKEN"):
            for_web(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [("JUPYTERHUB_API_URL", "hub:8081/hub/api"), ("JUPYTERHUB_OAUTH_ACCESS_SCOPES", "access:services")],
)
def test_what_a_hub_says_is_not_just_believed(name: str, value: str) -> None:
    (problem,) = problems(**{**TOLD, "KILN_AUTH": "hub", name: value})
    assert problem.startswith(f"{name}: must be ")


# Quantities. -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("30s", 30), ("10m", 600), ("24h", 86400), ("7d", 604800), ("1.5h", 5400), ("250ms", 0.25)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "number"), [("1048576", 2**20), ("1MiB", 2**20), ("1 MiB", 2**20), ("512KiB", 2**19), ("1kB", 1000)]
)
def test_sizes(text: str, number: int) -> None:
    assert size(text) == number


@given(st.text())
def test_quantities_are_read_or_refused(text: str) -> None:
    for reader in (duration, size):
        with suppress(ValueError):
            assert 0 <= reader(text) <= max(LONGEST, 10**12 * 2**30)


@given(st.dictionaries(st.sampled_from([setting.name for setting in SETTINGS]), st.text()))
def test_any_environment_is_read_or_refused(environ: dict[str, str]) -> None:
    with suppress(SettingsError):
        assert read(environ).image_prefix


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, None),
        ({"DOCKER_HOST": "tcp://d:1", "CONTAINER_HOST": "unix:///c"}, "tcp://d:1"),
        ({"KILN_DAEMON": "podman", "DOCKER_HOST": "tcp://d:1", "CONTAINER_HOST": "unix:///c"}, "unix:///c"),
        ({"KILN_DAEMON": "podman", "KILN_DOCKER_HOST": "unix:///k", "CONTAINER_HOST": "unix:///c"}, "unix:///k"),
    ],
)
def test_the_daemon_is_found_as_its_client_finds_it(environment: dict[str, str], address: str | None) -> None:
    assert wiring.load(LEAST | environment).docker_host == address


def test_a_podman_service_of_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = LEAST | {"KILN_DAEMON": "podman", "XDG_RUNTIME_DIR": "/run/user/7"}
    for user, folder in ((7, "/run/user/7"), (0, "/run")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert wiring.load(environment).docker_host == f"unix://{folder}/podman/podman.sock"
