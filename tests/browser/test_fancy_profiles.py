"""The real jupyterhub-fancy-profiles in a real browser: a user requests an image on the Hub's form, and gets it.

It requests repositories of GitHub alone, by a token of the user's own that it makes.
"""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import sign_in
from tests.parts.hubservice import HubService
from tests.parts.installation import BROKEN, SMALL
from tests.parts.kiln import until

FIELD = "profile-option-build--image--unlisted-choice"
HOLD = """() => document.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    window.held = event.target;
})"""


class Form:
    """The Hub's form, with the image builder chosen."""

    def __init__(self, page: Page, pair: HubService, user: str) -> None:
        self.page = page
        sign_in(page, pair, user, "hub/spawn")
        pair.sign_as(user)
        page.get_by_role("combobox").click()
        page.get_by_text("Build your own image", exact=True).click()
        self.terminal = page.locator(".xterm-rows")
        expect(self.terminal).to_contain_text("Logs will appear here")
        page.evaluate(HOLD)

    def build(self, repository: str, ref: str | None = None) -> None:
        self.page.get_by_label("Repository", exact=True).fill(repository)
        if ref:
            self.page.get_by_label("Git Ref", exact=True).fill(ref)
        self.page.get_by_role("button", name="Build Image and Start").click()

    def built(self) -> str:
        """The image in the form's field at the moment of its submission; it waits for `start`."""
        until(lambda: self.page.evaluate("Boolean(window.held)"), 50)
        return self.page.locator(f"input[name={FIELD}]").input_value()

    def start(self) -> None:
        self.page.evaluate("held.submit()")

    def says(self, what: str) -> None:
        """Waits until the visible part of the terminal, which breaks lines, contains the text."""
        until(lambda: what.replace(" ", "") in "".join(self.terminal.inner_text().split()))


@pytest.mark.timeout(180)
def test_a_server_starts_from_what_was_built_for_it(pair: HubService, page: Page) -> None:
    commit = pair.system.commit("ada/course", {"Dockerfile": SMALL})
    form = Form(page, pair, "ada")
    form.build("ada/course")
    image = form.built()
    form.says(f"{image}@sha256:")
    form.says("Done! Image built")
    form.says("Image has been built! Starting your server...")
    name, _, tag = image.rpartition(":")
    assert tag == commit
    assert pair.system.digest(name, tag)
    form.start()
    told = pair.hub.folder / "ada.image"
    until(lambda: told.exists() and told.read_text())
    assert told.read_text() == image
    (build,) = pair.builds(commit)
    assert build["repository"] == "https://github.com/ada/course"
    assert [cause["by"] for cause in build["causes"]] == ["user:ada"]


@pytest.mark.timeout(180)
def test_what_is_built_is_there_at_once(pair: HubService, page: Page) -> None:
    commit = pair.system.commit("ada/again", {"Dockerfile": SMALL})
    pair.sign_as("grace")
    name = pair.system.ask(repository="https://github.com/ada/again", ref="main").json()["name"]
    made = pair.system.ended(name)["image"]
    form = Form(page, pair, "grace")
    form.build("https://github.com/ada/again", commit)
    assert form.built() == f"{made['repository']}:{made['tag']}"
    form.says("Done! Found built image")
    (build,) = pair.builds(commit)
    assert len(build["causes"]) == 1


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("repository", "ref", "sentence"),
    [
        ("ada/wrong", "main", "nothing-of-that-name"),
        ("ada/wrong", "nowhere", "nowhere"),
        ("ada/banned", "main", "https://github.com/ada/banned is banned here."),
    ],
)
def test_who_cannot_have_it_reads_why(pair: HubService, page: Page, repository: str, ref: str, sentence: str) -> None:
    pair.system.commit("ada/wrong", {"Dockerfile": BROKEN})
    form = Form(page, pair, "kim")
    form.build(repository, ref)
    form.says(sentence)
    expect(page.locator(".invalid-feedback")).to_contain_text("image build failed")
    assert page.evaluate("window.held") is None
    expect(page.get_by_role("button", name="Build Image and Start")).to_be_enabled()
