"""Triggers for tests: the first problem of a rule is an error."""

from __future__ import annotations

from collections.abc import Sequence

from builds.errors import RuleError
from builds.triggers import Trigger, TriggerRule, read


def load(rules: Sequence[TriggerRule] | None) -> tuple[Trigger, ...]:
    """Return the triggers of a configuration. Raises RuleError with the place."""
    triggers, problems = read(rules)
    if problems:
        raise RuleError(problems[0])
    return triggers
