"""Signatures of Standard Webhooks 1.0: HMAC-SHA256 over id, time of sending and body.

A key is written `whsec_` and its bytes in base64. One delivery may carry several signatures, so that a sender can
change its key; other kinds than `v1` are passed over. What was signed longer ago than `TOLERANCE` may have been
recorded and sent again by somebody else.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from eventing.errors import SignatureError

PREFIX = b"whsec_"
TOLERANCE = timedelta(minutes=5)
"""Between the time that was signed and now, in either direction."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_key(secret: bytes) -> bool:
    return secret.startswith(PREFIX)


def verify(named: Mapping[str, str], body: bytes, secrets: Sequence[bytes], now: datetime) -> None:
    """`named`: headers by lower-case name, each byte a character. Secrets that are no keys sign nothing.

    Raises SignatureError unless one of the keys signed this delivery, and not too long ago.
    """
    sent = [named.get(name, "") for name in ("webhook-id", "webhook-timestamp", "webhook-signature")]
    id_, timestamp, signatures = (value.encode("latin-1", "replace") for value in sent)
    if not id_ or not re.fullmatch(rb"[0-9]{1,11}", timestamp):
        raise SignatureError("webhook-id must be there, and webhook-timestamp in seconds.")
    given = [signature for signature in signatures.split(b" ") if signature.startswith(b"v1,")]
    right = [_signature(key, id_, timestamp, body) for key in map(_key, secrets) if key]
    if not any([hmac.compare_digest(one, other) for one in given for other in right]):  # noqa: C419 - all, always
        raise SignatureError("webhook-signature was not made with this webhook's signing token.")
    if abs(_EPOCH + timedelta(seconds=int(timestamp)) - now) > TOLERANCE:
        raise SignatureError("webhook-timestamp is more than 5 minutes away: it was sent again, or a clock is wrong.")


def headers(id_: str, body: bytes, secret: bytes, now: datetime) -> dict[str, str]:
    """The headers that sign a delivery with a key."""
    timestamp = str(int((now - _EPOCH).total_seconds()))
    signature = _signature(_key(secret), id_.encode("latin-1", "replace"), timestamp.encode(), body)
    return {"webhook-id": id_, "webhook-timestamp": timestamp, "webhook-signature": signature.decode()}


def _key(secret: bytes) -> bytes:
    """The bytes of a key; none where it is no key."""
    try:
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True) if is_key(secret) else b""
    except binascii.Error:
        return b""


def _signature(key: bytes, id_: bytes, timestamp: bytes, body: bytes) -> bytes:
    return b"v1," + base64.b64encode(hmac.digest(key, b".".join([id_, timestamp, body]), "sha256"))
