"""DSSE, the envelope of signed in-toto statements, with cosign's kind of keys: ECDSA over P-256 with SHA-256.

https://github.com/secure-systems-lab/dsse/blob/master/protocol.md, envelope.md

cosign writes signatures as ASN.1 DER, and key pairs as PEM. Encrypted private keys are not supported, cosign's own
format included: it needs a cipher that `cryptography` does not have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from builds.errors import ProvenanceError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MAKE_KEY = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out cosign.key"


class _Signature(msgspec.Struct, frozen=True):
    sig: bytes
    keyid: str = ""


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    payload_type: str
    payload: bytes
    signatures: tuple[_Signature, ...]


class PublicKey:
    """Checks signatures."""

    def __init__(self, key: EllipticCurvePublicKey) -> None:
        self._key = key

    @classmethod
    def read(cls, pem: bytes) -> PublicKey:
        """Reads PEM, as in `cosign.pub`. Raises ProvenanceError."""
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415  # 30 ms, only for keys
        from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

        try:
            key = load_pem_public_key(pem)
        except Exception:  # noqa: BLE001 (the library raises several kinds for invalid keys)
            raise ProvenanceError("Not a public key. Give one in PEM form, such as cosign.pub.") from None
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise ProvenanceError("Unsupported key. Give an ECDSA key over P-256, as cosign makes them.")
        return cls(key)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA  # noqa: PLC0415
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

        try:
            self._key.verify(signature, message, ECDSA(SHA256()))
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """Signs statements. Its representation reveals nothing of the key."""

    def __init__(self, key: EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def read(cls, pem: bytes) -> SigningKey:
        """Reads PEM without a password. Raises ProvenanceError."""
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        if b"ENCRYPTED" in pem:
            raise ProvenanceError(
                f"The key is encrypted, and Kiln has no password for it. Make one without a password: {MAKE_KEY}"
            )
        try:
            key = load_pem_private_key(pem, None)
        except Exception:  # noqa: BLE001 (the library raises several kinds for invalid keys)
            raise ProvenanceError(f"Not a private key in PEM form. Make one: {MAKE_KEY}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise ProvenanceError(f"Not an ECDSA key over P-256. Make one: {MAKE_KEY}")
        return cls(key)

    @property
    def public(self) -> PublicKey:
        return PublicKey(self._key.public_key())

    def sealed(self, payload: bytes) -> bytes:
        """The signed envelope, as JSON, of an in-toto statement."""
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA  # noqa: PLC0415
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

        signature = self._key.sign(pae(PAYLOAD_TYPE, payload), ECDSA(SHA256()))
        return msgspec.json.encode(
            _Envelope(payload_type=PAYLOAD_TYPE, payload=payload, signatures=(_Signature(signature),))
        )


def opened(envelope: bytes, key: PublicKey | None) -> tuple[bytes, bool | None]:
    """The payload, and whether the key signed it: `None` without a signature or without a key.

    Raises ProvenanceError if the envelope is invalid.
    """
    try:
        found = msgspec.json.decode(envelope, type=_Envelope)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ProvenanceError("The envelope of the provenance statement cannot be read.") from None
    if key is None or not found.signatures:
        return found.payload, None
    message = pae(found.payload_type, found.payload)
    good = any(key.verifies(one.sig, message) for one in found.signatures)
    return found.payload, good and found.payload_type == PAYLOAD_TYPE


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the signed bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
