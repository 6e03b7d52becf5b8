"""Signatures of Standard Webhooks 1.0: HMAC-SHA256 over id, time of sending and body.

A key is `whsec_` followed by its bytes in base64. One delivery may carry several signatures, so that a sender can
rotate its key. Kiln ignores versions other than `v1` and rejects signatures older than `TOLERANCE` as replays.

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
"""Between the signed time and now, in either direction."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_key(secret: bytes) -> bool:
    return secret.startswith(PREFIX)


def verify(named: Mapping[str, str], body: bytes, secrets: Sequence[bytes], now: datetime) -> None:
    """Raise SignatureError unless one of the keys signed this delivery recently.

    `named`: headers by lower-case name, each byte a character. Secrets that are not keys sign nothing.
    """
    sent = [named.get(name, "") for name in ("webhook-id", "webhook-timestamp", "webhook-signature")]
    id_, timestamp, signatures = (value.encode("latin-1", "replace") for value in sent)
    if not id_ or not re.fullmatch(rb"[0-9]{1,11}", timestamp):
        raise SignatureError("Send webhook-id, and webhook-timestamp in seconds.")
    given = [signature for signature in signatures.split(b" ") if signature.startswith(b"v1,")]
    right = [_signature(key, id_, timestamp, body) for key in map(_key, secrets) if key]
    if not any([hmac.compare_digest(one, other) for one in given for other in right]):  # noqa: C419 - all, always
        raise SignatureError("webhook-signature does not match this webhook's signing token.")
    if abs(_EPOCH + timedelta(seconds=int(timestamp)) - now) > TOLERANCE:
        raise SignatureError("webhook-timestamp differs from now by more than 5 minutes. Check the clocks.")


def headers(id_: str, body: bytes, secret: bytes, now: datetime) -> dict[str, str]:
    """Return the headers that sign a delivery with a key."""
    timestamp = str(int((now - _EPOCH).total_seconds()))
    signature = _signature(_key(secret), id_.encode("latin-1", "replace"), timestamp.encode(), body)
    return {"webhook-id": id_, "webhook-timestamp": timestamp, "webhook-signature": signature.decode()}


def _key(secret: bytes) -> bytes:
    """Return the bytes of a key; none if it is not a key."""
    try:
        return base64.b64decode(secret.removeprefix(PREFIX), validate=True) if is_key(secret) else b""
    except binascii.Error:
        return b""


def _signature(key: bytes, id_: bytes, timestamp: bytes, body: bytes) -> bytes:
    return b"v1," + base64.b64encode(hmac.digest(key, b".".join([id_, timestamp, body]), "sha256"))
