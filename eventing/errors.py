"""What can go wrong with an event, as one tree. Nothing else comes out of the pure modules of this package.

EventError
 ├── DecodeError          what came in breaks a rule: its sender must change it (400)
 │    └── NotACloudEvent  nothing says that it is a CloudEvent, or its format is not JSON (415)
 ├── SavedError           a saved request that cannot be read, or is none (400)
 ├── SignatureError       a webhook without a signature that one of the secrets made (401)
 ├── EncodeError          an event that CloudEvents 1.0 has no form for: ours to mend
 ├── FilterError          a filter that is none: the message names the place
 └── SinkError            K_SINK and its kin do not make a sink
"""

from __future__ import annotations


class EventError(Exception):
    """Its text is a sentence for the sender, without anything secret and of bounded length."""

    status = 500
    """The HTTP status that answers it."""


class DecodeError(EventError):
    status = 400


class NotACloudEvent(DecodeError):
    status = 415


class SavedError(EventError):
    status = 400


class SignatureError(EventError):
    status = 401


class EncodeError(EventError):
    pass


class FilterError(EventError):
    pass


class SinkError(EventError):
    pass
