"""YAML documents with strict keys, and the source text of any place in one.

YAML 1.1 converts `on` to a boolean, `1.10` to the number 1.1, `2026-01-01` to a date and an empty value to nothing, and
keeps the last of two equal keys. Repeated keys are therefore an error here, and callers can read the text of a place.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from kiln.errors import ConfigError

LARGEST = 2**18

QUOTES = "; write a text that begins with one of ! * & @ ` % or contains [ ] { } in quotes, '!main'"

_UNQUOTED = re.compile(
    r"constructor for the tag '!|undefined alias|scanning an? (?:alias|anchor|tag)|cannot start any token|',' or '\]'"
)
_STEP = re.compile(r"\[([0-9]+)\]|\.?([^.\[\]]+)")


class Document(msgspec.Struct, frozen=True):
    """`value` is the document as plain values, `root` its node."""

    value: Any
    root: Any

    def scalar(self, place: str) -> tuple[str, int] | None:
        """Return the text at a place such as `triggers[0].push.branches[1]`, as written, and its line (from 1); `None`
        if the place is not a scalar.
        """
        node = self.root
        for index, name in _STEP.findall(place):
            node = _child(node, index, name)
        if node is None or node.id != "scalar":
            return None
        return str(node.value), node.start_mark.line + 1


def _child(node: Any, index: str, name: str) -> Any:
    if node is not None and node.id == "sequence" and index:
        return node.value[int(index)] if int(index) < len(node.value) else None
    if node is not None and node.id == "mapping" and name:
        return next((value for key, value in node.value if key.value == name), None)
    return None


def document(content: bytes) -> Document:
    """Parse the document. Raises ConfigError."""
    import yaml  # noqa: PLC0415  # only where there is a file

    if len(content) > LARGEST:
        raise ConfigError([f"The file is larger than {LARGEST // 2**10} KiB"])

    class Loader(yaml.SafeLoader):  # not the one in C, which crashes on deep nesting
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key `{key.value}` is repeated", key.start_mark
                    )
                if isinstance(key.value, str):
                    seen.add(key.value)
            return super().construct_mapping(node, deep=deep)

    loader = None
    try:
        loader = Loader(content)
        root = loader.get_single_node()
        return Document(None if root is None else loader.construct_document(root), root)
    except yaml.MarkedYAMLError as error:
        line = f"Line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = str(error.problem or "this is not YAML")
        raise ConfigError(
            [f"{line}{problem}{QUOTES if _UNQUOTED.search(f'{error.context} {problem}') else ''}"]
        ) from None
    except RecursionError:
        raise ConfigError(["The file is nested too deeply"]) from None
    except Exception as error:  # noqa: BLE001  # PyYAML raises arbitrary exceptions for invalid values
        raise ConfigError([f"The file is not YAML: {type(error).__name__}"]) from None
    finally:
        if loader is not None:
            loader.dispose()
