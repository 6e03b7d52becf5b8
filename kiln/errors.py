"""The errors of a configuration.

KilnError                  everything found wrong, one sentence each (.problems)
 ├── SettingsError         the environment
 ├── ConfigError           the YAML file
 ├── SecretsError          the folder of secrets
 └── CommandError          a command cannot do its task
      └── NotKnown         the command cannot tell, because a service did not answer

Kiln collects and reports all problems together, so that correcting a configuration takes one restart.
"""

from __future__ import annotations

from collections.abc import Iterable


class KilnError(Exception):
    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class SettingsError(KilnError):
    pass


class ConfigError(KilnError):
    pass


class SecretsError(KilnError):
    pass


class CommandError(KilnError):
    def __init__(self, problem: str) -> None:
        super().__init__([problem])


class NotKnown(CommandError):
    pass
