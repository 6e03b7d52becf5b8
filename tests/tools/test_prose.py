"""The prose checker finds each kind of fault, in each kind of text, and leaves plain sentences alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import prose

RIDDLES = [
    "There is nothing to be done now",
    "The Kubernetes API does not do what is needed",
    "Send Authorization: Bearer and one of this Kiln's API tokens.",
    "k-sink is the name of the one that K_SINK injects",
    "The build is given up and tried again; that does not count",
    "The Lease is not there: upgrade or reinstall the release",
    "Everything is in order",
    "The way in: a request with a name",
    "Whether a webhook's route may speak for the repositories",
    "It is let in as far as its host lets them in without a credential",
    "Nothing more is sent to a node from which an attempt is taken back in this same look",
    "Dies here if it was asked to, and nobody has yet",
    "Each waits for the others, or it would do the work of several",
    "What a storm's test asks for itself is no storm",
    "Rooms of the architecture",
    "Whoever heeds the answer is told at once",
    "The record is written by the controller before anything else",
    "A sentence " + "of very many words " * 8,
]
PLAIN = [
    "Engine unavailable, retrying in 1 s",
    "Kubernetes API request failed",
    "Missing token. Send `Authorization: Bearer <API token>`.",
    'The sink name "k-sink" is reserved for K_SINK',
    "…retried; such retries do not count towards KILN_MAX_ATTEMPTS",
    "Lease X not found. Run `helm upgrade`.",
    "Configuration is valid",
    "Validate a requested build and derive its name",
    "Others may build it only if it is publicly readable",
    "Stop placing builds on a node that this round evicts from",
    "A barrier forces the pool to start every thread",
    "What does Kiln build?",
    "The image is named by digest.",
]
PYTHON = '''"""{0}"""

# {1}
x = 1  # {2}


class C:
    """Plain.

    {3}
    """

    def f(self, name):
        raise ValueError(f"{4} of {{name}}")
'''

TEMPLATE = """{{% extends "base.html" %}}
{{# {0} #}}
{{% macro entry(label) %}}<label title="{1}">{{{{ label }}}}</label>{{% endmacro %}}
<p>{2}
  <a href="{{{{ url_for('pages.index') }}}}">and more</a>.</p>
{{{{ entry('{3}') }}}}
<button aria-label="{4}" class="dies anew">+</button><input placeholder="{5}">
{{% if wrong %}}Plain.{{% else %}}{6}{{% endif %}}
<pre>It dies at once.</pre>
"""
SCRIPT = """// {0}
// and more.
const address = "https://dies.example"; // {1}
/* {2} */
status.textContent = "{3}";
other.textContent = `{4} of ${{name}}`;
const pattern = /dies \\/\\/ at once/;
"""


def found(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(prose, "ROOT", path.parent)
    path.write_text(text)
    return [finding.sentence for text in prose.texts(path) for finding in prose.check(text)]


def faults(*places: str) -> list[str]:
    return [f"The {place} dies early now" for place in places]


@pytest.mark.parametrize("sentence", RIDDLES)
def test_a_riddle_is_found(sentence: str) -> None:
    assert [*prose.check(prose.Text(Path("page.md"), 1, sentence))]


@pytest.mark.parametrize("sentence", PLAIN)
def test_a_plain_sentence_passes(sentence: str) -> None:
    assert [*prose.check(prose.Text(Path("page.md"), 1, sentence))] == []


def test_all_texts_of_a_module_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = faults("module", "block", "line", "class", "message")
    assert len(found(tmp_path / "module.py", PYTHON.format(*wrong), monkeypatch)) == len(wrong)


def test_all_texts_of_a_page_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "# It dies\n\nIt dies\nsoon. It dies.\n\n- It dies\n\n| a | b |\n|---|---|\n| `x` | It dies |\n"
    assert len(found(tmp_path / "page.md", page, monkeypatch)) == 5


def test_all_texts_of_a_template_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = faults("comment", "title", "paragraph", "argument", "label", "placeholder", "branch")
    assert sorted(found(tmp_path / "page.html", TEMPLATE.format(*wrong), monkeypatch)) == sorted(
        f"{fault} and more." if fault == wrong[2] else fault for fault in wrong
    )


def test_a_text_of_a_template_names_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    page = tmp_path / "page.html"
    page.write_text("{% if one -%}\n\n{#- a\nb -#}\n<p>\n  One {{ two(\n3) }} four.</p>\n<p>Five.</p>\n")
    assert [(text.line, text.words) for text in prose.texts(page) if text.words] == [
        (3, "a b"),
        (6, "One Code four."),
        (8, "Five."),
    ]


@pytest.mark.parametrize("suffix", ["js", "css"])
def test_all_comments_of_a_script_or_style_are_read(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "/* The pod dies,\n   and starts. */\nbody { }\n/* It dies. */\n"
    assert found(tmp_path / f"file.{suffix}", source, monkeypatch) == ["The pod dies, and starts.", "It dies."]


def test_all_texts_of_a_script_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = faults("file", "line", "block", "string", "template")
    assert found(tmp_path / "page.js", SCRIPT.format(*wrong), monkeypatch) == [
        f"{wrong[0]} and more.",
        *wrong[1:4],
        f"{wrong[4]} of",
    ]


def test_code_is_not_prose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "Run `dies at once`:\n\n```sh\nnobody dies at once\n```\n"
    assert found(tmp_path / "page.md", page, monkeypatch) == []


def test_a_program_in_a_string_is_not_prose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = '"""A module."""\n\nTEXT = """\n{}nobody dies at once here\n"""\n'
    assert found(tmp_path / "program.py", module.format("import sys\n" * 3), monkeypatch) == []
    assert found(tmp_path / "message.py", module.format("Two lines:\n"), monkeypatch)


def test_comments_of_yaml_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(tmp_path / "values.yaml", "# The pod dies,\n# and starts.\npod: dies\n", monkeypatch)


def test_a_finding_names_its_place_and_the_better_word() -> None:
    finding = next(prose.check(prose.Text(Path("page.md"), 7, "It heeds the limit")))
    assert str(finding).startswith("page.md:7: Terms: Write 'respect or follow' instead of 'heeds'.")


def test_an_unknown_kind_of_rule_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "New.yml").write_text("extends: metric\nmessage: m\n")
    with pytest.raises(ValueError, match="unknown kind of rule: metric"):
        prose.rule(tmp_path / "New.yml")


def test_the_files_under_the_rules_exist() -> None:
    assert len([*prose.covered()]) > 30
