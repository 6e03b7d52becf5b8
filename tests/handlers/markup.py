"""Parsed pages, and checks of the structure that keyboards and screen readers need."""

from __future__ import annotations

import itertools
from typing import Any

from bs4 import BeautifulSoup, Tag
from flask.testing import FlaskClient

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def soup(client: FlaskClient, path: str, status: int = 200) -> BeautifulSoup:
    answer = client.get(path, headers=HTML)
    assert (answer.status_code, answer.mimetype) == (status, "text/html"), answer.text
    return BeautifulSoup(answer.text, "html.parser")


def text(part: Any) -> str:
    return " ".join(part.get_text(" ").split())


def check_structure(page: BeautifulSoup) -> None:
    """Check for one main heading, no skipped level, captions, column headers and labels, and nothing inline."""
    levels = [int(heading.name[1]) for heading in page.select("h1, h2, h3, h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert len(page.select("main")) == 1
    ids = [str(part["id"]) for part in page.select("[id]")]
    assert len(ids) == len({*ids})
    for table in page.find_all("table"):
        assert isinstance(table, Tag)
        assert table.find("caption")
        assert all(name.get("scope") for name in table.find_all("th"))
    for section in page.select("[aria-labelledby]"):
        assert page.find(id=str(section["aria-labelledby"]))
    for field in page.select("input:not([type=hidden]), select, textarea"):
        assert field.find_parent("label") or page.select_one(f'label[for="{field.get("id")}"]')
    for part in page.find_all(True):
        assert not [name for name in part.attrs if name == "style" or name.startswith("on")]
    assert all(script.get("src") and script.get("integrity") for script in page.find_all("script"))
    assert not page.find_all("style")
    for link in page.find_all(["a", "button"]):
        assert text(link) or link.get("aria-label")
