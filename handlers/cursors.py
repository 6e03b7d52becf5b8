"""Places in a list of builds as clients hold them: signed, and good for who got them and for that very list.

They name no build that their holder may not see. Any replica can read them, none keeps anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from itsdangerous import BadData, URLSafeSerializer

from builds.engines import paging


class Cursors:
    """Of one list, as `about` says (who asks for it, and what for). The first of the `keys` signs, each is believed.

    Where everybody is let in there may be no key; a place in a list of which all may be seen tells nobody anything.
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
        """The cursor of the records. Raises ValueError for one that was not given here."""
        try:
            return str(self._signed.loads(cursor))
        except BadData as error:
            raise ValueError("The cursor of a list is to be given back as it was received.") from error
