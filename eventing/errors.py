"""The errors of this package as one tree. Its pure modules raise nothing else.

EventError
 ├── DecodeError          malformed input: the sender must change it (400)
 │    └── NotACloudEvent  not declared as a CloudEvent, or not in JSON format (415)
 ├── SavedError           a saved request that is malformed or missing (400)
 ├── SignatureError       a webhook without a valid signature (401)
 ├── EncodeError          an event that CloudEvents 1.0 cannot express: a defect of Kiln
 ├── FilterError          an invalid filter: the message names the place
 └── SinkError            K_SINK and its companions do not configure a sink
"""

from __future__ import annotations


class EventError(Exception):
    """The text is a sentence for the sender, of bounded length and without secrets."""

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
