"""Triggers as a test writes them: the first thing that is wrong with a rule is an error."""

from __future__ import annotations

from collections.abc import Sequence

from builds.errors import RuleError
from builds.triggers import Trigger, TriggerRule, read


def load(rules: Sequence[TriggerRule] | None) -> tuple[Trigger, ...]:
    """The triggers of a configuration. Raises RuleError, naming the place."""
    triggers, problems = read(rules)
    if problems:
        raise RuleError(problems[0])
    return triggers
