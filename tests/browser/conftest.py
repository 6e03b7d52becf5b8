"""Real Chromium before a real JupyterHub and all of Kiln: without it, every test here is skipped with the reason.

The Hub offers the form of jupyterhub-fancy-profiles, as our documentation has it. Its servers are KubeSpawner's,
without a cluster: a start ends as soon as its image is known. The Git host is also github.com, for a client that uses
it as a proxy and trusts its authority.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, StorageState, expect

from tests.docker.conftest import docker, registry  # noqa: F401  (fixtures)
from tests.hub.conftest import packages  # noqa: F401  (a fixture)
from tests.parts import chromium
from tests.parts.authority import make_authority
from tests.parts.githost import GitHost
from tests.parts.hub import NO_CLUSTER
from tests.parts.hubservice import HubService
from tests.parts.mallory import Mallory
from tests.parts.registry import Registry
from tests.parts.site import TOKEN, Site

expect.set_options(timeout=30_000)

CONFIG = """
import os
from pathlib import Path

import jupyterhub_fancy_profiles

Path("kubeconfig").write_text(cluster)
os.environ["KUBECONFIG"] = "kubeconfig"


async def start_of(spawner):
    await spawner.load_user_options()
    Path(f"{spawner.user.name}.image").write_text(spawner.image)
    raise RuntimeError("there is no cluster here")


c.JupyterHub.spawner_class = "kubespawner.KubeSpawner"
c.Spawner.pre_spawn_hook = start_of
c.JupyterHub.load_roles += [{"name": "user", "scopes": ["self", access]}]
jupyterhub_fancy_profiles.setup_ui(c)
c.Proxy.extra_routes = {"/user/mallory/": mallory}
c.KubeSpawner.profile_list = [
    {
        "display_name": "Build your own",
        "slug": "build",
        "default": True,
        "profile_options": {
            "image": {
                "display_name": "Image",
                "dynamic_image_building": {"enabled": True},
                "unlisted_choice": {
                    "enabled": True,
                    "display_name": "Custom image",
                    "validation_regex": f"^{prefix}.+:.+$",
                    "kubespawner_override": {"image": "{value}"},
                },
                "choices": {
                    "default": {
                        "display_name": "The image of this Hub",
                        "default": True,
                        "kubespawner_override": {},
                    },
                },
            },
        },
    },
]
"""


@pytest.fixture(scope="package")
def pair(
    tmp_path_factory: pytest.TempPathFactory,
    docker: None,  # noqa: F811
    packages: Path,  # noqa: F811
    registry: Registry,  # noqa: F811
) -> Iterator[HubService]:
    folder = tmp_path_factory.mktemp("browser")
    make_authority(folder, "DNS:github.com")
    with GitHost(folder / "git") as host, Mallory() as mallory:
        host.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        host.tls.load_cert_chain(folder / "host.pem", folder / "host.key")
        trust = {"https_proxy": host.base, "GIT_SSL_CAINFO": str(folder / "ca.pem")}
        hub = f"cluster, prefix, mallory = {NO_CLUSTER!r}, '{registry.host}/', {mallory.url!r}\n{CONFIG}"
        banned = "https://github.com/ada/banned"
        with HubService(
            folder, hub=hub, registry=registry, host=host, KILN_BANNED_REPOSITORIES=banned, **trust
        ) as pair:
            yield pair


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    reason = chromium.problem()
    if reason:
        pytest.skip(reason)
    with chromium.chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a browser without any state."""
    with browser.new_context() as context:
        yield context.new_page()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(scope="module")
def signed_in(browser: Browser, site: Site) -> StorageState:
    """The state of a browser that has signed in."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(site.page())
        page.get_by_label("API token").fill(TOKEN)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("button", name="Sign out").wait_for()
        return context.storage_state()


@pytest.fixture
def visit(browser: Browser, signed_in: StorageState) -> Iterator[Callable[..., Visit]]:
    """Opens pages as a signed-in user, and fails at the end if one of them has logged an error."""
    with ExitStack() as stack:
        visits: list[Visit] = []

        def open_page(url: str, **options: Any) -> Visit:
            context = stack.enter_context(browser.new_context(storage_state=signed_in, **options))
            visits.append(Visit(context.new_page()))
            visits[-1].page.goto(url)
            return visits[-1]

        yield open_page
        assert [error for visit in visits for error in visit.errors] == []


class Visit:
    """A page, and the errors that it has logged: of scripts, of the Content-Security-Policy, of what did not load."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))


def sign_in(page: Page, pair: HubService, user: str, path: str) -> None:
    """Opens a page, signs in where the Hub asks for it, and ends at that page."""
    page.goto(f"{pair.hub.url}{path}")
    page.get_by_label("Username:").fill(user)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{pair.hub.url}{path}")
