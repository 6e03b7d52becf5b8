"""What can be wrong with how Kiln was set up.

KilnError                  everything found wrong, one sentence each (.problems)
 ├── SettingsError         the environment
 ├── ConfigError           the YAML file
 ├── SecretsError          the folder of secrets
 └── CommandError          what a command was asked to do cannot be done
      └── NotKnown         nor whether it could: nobody could be asked

All problems are gathered and told together: mending a configuration one error per restart is no way to spend a morning.
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
