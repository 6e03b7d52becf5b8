"""Cursors in a list of builds: signed, and valid only for their recipient and that list.

A cursor names no build that its holder must not see. Any replica can read it; none keeps state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from itsdangerous import BadData, URLSafeSerializer

from builds.engines import paging


class Cursors:
    """Cursors of one list, which `about` identifies (reader and filters). The first of the `keys` signs; any of them
    verifies.

    Without authentication the keys may be empty: all builds are visible, so a cursor reveals nothing.
    """

    def __init__(self, keys: Sequence[bytes], about: Sequence[str | None]) -> None:
        self._signed = URLSafeSerializer(
            [*reversed(keys)] or [b""],
            salt=f"kiln-list\n{json.dumps(about)}",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

    def given(self, place: paging.Place) -> str:
        return str(self._signed.dumps(paging.cursor(place)))

    def taken(self, cursor: str) -> str:
        """Return the cursor of the records. Raises ValueError for a forged or foreign cursor."""
        try:
            return str(self._signed.loads(cursor))
        except BadData as error:
            raise ValueError("Invalid cursor. Send it back as received, with the same query.") from error
