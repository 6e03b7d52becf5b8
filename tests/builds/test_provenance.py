"""Provenance statements: their schema, and the criteria for trusting one."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import jsonschema
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from builds.build import Image, Request
from builds.dsse import PublicKey, SigningKey, opened, pae
from builds.errors import ProvenanceError
from builds.options import Options
from builds.provenance import (
    ENVELOPE,
    PREDICATE_TYPE,
    STATEMENT,
    Builder,
    CausingEvent,
    Expected,
    Statement,
    Verified,
    has,
    statement_for,
    verified,
)

COMMIT, DIGEST = "c" * 40, "sha256:" + "1" * 64
REPOSITORY = "https://github.com/our-org/course"
EXPECTED = Expected(digest=DIGEST, repository=REPOSITORY, commit=COMMIT, builder="https://kiln.example/")
IMAGE = "registry.example/org/course-0123456789"
STARTED, FINISHED = datetime(2026, 3, 1, 12, tzinfo=UTC), datetime(2026, 3, 1, 12, 5, tzinfo=UTC)

TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"}
URI = {"type": "string", "pattern": r"^[a-z][a-z0-9+.-]*:\S+$"}
RESOURCE = {
    "type": "object",
    "anyOf": [{"required": ["uri"]}, {"required": ["digest"]}, {"required": ["content"]}],
    "properties": {
        "uri": URI,
        "name": {"type": "string"},
        "digest": {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]+$"}},
    },
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "required": ["_type", "subject", "predicateType", "predicate"],
    "additionalProperties": False,
    "properties": {
        "_type": {"const": "https://in-toto.io/Statement/v1"},
        "subject": {
            "type": "array",
            "minItems": 1,
            "items": {**RESOURCE, "required": ["digest"]},
        },
        "predicateType": {"const": "https://slsa.dev/provenance/v1"},
        "predicate": {
            "type": "object",
            "required": ["buildDefinition", "runDetails"],
            "additionalProperties": False,
            "properties": {
                "buildDefinition": {
                    "type": "object",
                    "required": ["buildType", "externalParameters"],
                    "additionalProperties": False,
                    "properties": {
                        "buildType": URI,
                        "externalParameters": {"type": "object"},
                        "internalParameters": {"type": "object"},
                        "resolvedDependencies": {"type": "array", "items": RESOURCE},
                    },
                },
                "runDetails": {
                    "type": "object",
                    "required": ["builder"],
                    "additionalProperties": False,
                    "properties": {
                        "builder": {
                            "type": "object",
                            "required": ["id"],
                            "additionalProperties": False,
                            "properties": {
                                "id": URI,
                                "version": {"type": "object", "additionalProperties": {"type": "string"}},
                                "builderDependencies": {"type": "array", "items": RESOURCE},
                            },
                        },
                        "metadata": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "invocationId": {"type": "string"},
                                "startedOn": TIME,
                                "finishedOn": TIME,
                            },
                        },
                        "byproducts": {"type": "array", "items": RESOURCE},
                    },
                },
            },
        },
    },
}
"""The fields of in-toto's Statement v1 and of SLSA's provenance v1, and the required ones
(https://slsa.dev/spec/v1.0/provenance#schema)."""


def made(*, digest: str = DIGEST, commit: str = COMMIT, build_args: dict[str, str] | None = None) -> Statement:
    return statement_for(
        image=Image(repository=IMAGE, tag=commit, digest=digest),
        request=Request(
            repository=REPOSITORY,
            clone_url=f"{REPOSITORY}.git",
            commit=commit,
            image=IMAGE,
            build_args=build_args or {},
        ),
        build="build-course-0",
        attempt="uid.1",
        events=(CausingEvent(source="https://github.com", id="d-1", type="com.github.push", ref="refs/heads/main"),),
        options=Options(appendix="RUN true", build_args={"TOKEN": "hush-hush"}, pull=True),
        builder=Builder(
            id="https://kiln.example/", image=f"registry.example/kiln:1@{DIGEST}", versions={"kiln-images": "0.1.0"}
        ),
        started=STARTED,
        finished=FINISHED,
    )


def plain(statement: Statement | dict[str, Any]) -> tuple[str, bytes]:
    return STATEMENT, msgspec.json.encode(statement)


def key(curve: ec.EllipticCurve | None = None) -> SigningKey:
    return SigningKey.read(pem(ec.generate_private_key(curve or ec.SECP256R1())))


def pem(private: Any, encryption: KeySerializationEncryption | None = None) -> bytes:
    return bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption()))


OURS, THEIRS = key(), key()


def signed(statement: Statement | dict[str, Any], by: SigningKey = OURS) -> tuple[str, bytes]:
    return ENVELOPE, by.sealed(msgspec.json.encode(statement))


# The statement. ------------------------------------------------------------------------------------------------------


def test_it_has_the_published_shape() -> None:
    jsonschema.validate(json.loads(plain(made())[1]), SCHEMA)
    jsonschema.validate(json.loads(plain(made(digest="sha512:" + "2" * 128))[1]), SCHEMA)


def test_it_names_what_was_built_from_what_for_whom_and_by_whom() -> None:
    found = json.loads(plain(made())[1])
    assert found["subject"] == [{"name": IMAGE, "digest": {"sha256": "1" * 64}}]
    definition, run = found["predicate"]["buildDefinition"], found["predicate"]["runDetails"]
    assert definition["resolvedDependencies"] == [
        {"uri": f"git+{REPOSITORY}.git", "digest": {"gitCommit": COMMIT}},
    ]
    assert definition["internalParameters"]["events"] == [
        {"source": "https://github.com", "id": "d-1", "type": "com.github.push", "ref": "refs/heads/main"}
    ]
    assert run["builder"]["builderDependencies"] == [
        {"uri": "docker://registry.example/kiln:1", "digest": {"sha256": "1" * 64}}
    ]
    assert run["metadata"] == {
        "invocationId": "uid.1",
        "startedOn": "2026-03-01T12:00:00Z",
        "finishedOn": "2026-03-01T12:05:00Z",
    }


def test_values_of_arguments_are_not_in_it() -> None:
    text = plain(made(build_args={"PASSWORD": "correct-horse", "N": "1"}))[1].decode()
    assert "PASSWORD" in text
    assert "TOKEN" in text
    for value in ("correct-horse", "hush-hush"):
        assert value not in text
        assert base64.b64encode(value.encode()).decode() not in text


# Trust. --------------------------------------------------------------------------------------------------------------


def refusal(*found: tuple[str, bytes], expected: Expected = EXPECTED, by: SigningKey | None = None) -> str:
    with pytest.raises(ProvenanceError) as caught:
        verified(found, expected, by.public if by else None)
    return str(caught.value)


def test_one_that_says_what_is_expected_holds() -> None:
    assert verified([plain(made())], EXPECTED) == Verified(statement=made(), signed=False)
    assert verified([signed(made())], EXPECTED) == Verified(statement=made(), signed=False)
    assert verified([signed(made())], EXPECTED, OURS.public) == Verified(statement=made(), signed=True)


def test_what_others_say_of_an_image_does_not_count() -> None:
    sbom = {"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://spdx.dev/Document", "predicate": {}}
    theirs: dict[str, Any] = json.loads(plain(made())[1])
    theirs["predicate"]["buildDefinition"]["buildType"] = "https://actions.github.io/buildtypes/workflow/v1"
    others = [plain(sbom), signed(sbom), plain(theirs), signed(theirs), ("text/plain", b"hello")]
    assert verified([*others, plain(made())], EXPECTED).statement == made()
    assert "no provenance statement" in refusal(*others)
    assert "no provenance statement" in refusal(*others, by=OURS)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (made(digest="sha256:" + "2" * 64), f"is about another image (sha256:{'2' * 64})"),
        (made(commit="d" * 40), f"The image's commit is {'d' * 40}, not {COMMIT}."),
    ],
)
@pytest.mark.parametrize("by", [None, OURS])
def test_one_that_says_something_else_is_refused(statement: Statement, words: str, by: SigningKey | None) -> None:
    assert words in refusal(plain(statement) if by is None else signed(statement), by=by)


def test_another_repository_or_builder_is_refused_by_name() -> None:
    other = msgspec.structs.replace(EXPECTED, repository="https://github.com/a/b", builder="https://other.example/")
    words = refusal(plain(made()), expected=other)
    assert f"The image's repository is {REPOSITORY}, not https://github.com/a/b." in words
    assert "The image's builder is https://kiln.example/, not https://other.example/." in words


def test_one_that_contradicts_itself_is_refused() -> None:
    found = json.loads(plain(made())[1])
    found["predicate"]["buildDefinition"]["resolvedDependencies"][0]["digest"]["gitCommit"] = "d" * 40
    assert "contradicts itself" in refusal(signed(found), by=OURS)


def test_of_several_none_is_believed_without_a_key() -> None:
    assert "2 provenance statements" in refusal(plain(made()), plain(made(commit="d" * 40)))
    assert "2 provenance statements" in refusal(signed(made()), (ENVELOPE, b"{"))


def test_with_a_key_only_what_it_has_signed_counts_and_all_of_that_must_hold() -> None:
    noise = [plain(made(commit="d" * 40)), signed(made(commit="e" * 40), by=THEIRS), (ENVELOPE, b"{")]
    assert verified([*noise, signed(made())], EXPECTED, OURS.public).signed
    assert "The image's commit is" in refusal(*noise, signed(made()), signed(made(commit="f" * 40)), by=OURS)


def test_unsigned_and_signed_by_another_are_told_apart() -> None:
    assert "not signed" in refusal(plain(made()), by=OURS)
    assert "does not match this key" in refusal(signed(made(), by=THEIRS), by=OURS)
    bare = json.loads(signed(made())[1])
    bare["signatures"] = []
    assert "not signed" in refusal((ENVELOPE, json.dumps(bare).encode()), by=OURS)


@given(st.data())
def test_no_changed_byte_of_a_signed_statement_is_believed(data: st.DataObject) -> None:
    payload = msgspec.json.encode(made())
    envelope = json.loads(OURS.sealed(payload))
    place = data.draw(st.integers(0, len(payload) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != payload[place]))
    changed = payload[:place] + bytes([other]) + payload[place + 1 :]
    envelope["payload"] = base64.b64encode(changed).decode()
    with pytest.raises(ProvenanceError):
        verified([(ENVELOPE, json.dumps(envelope).encode())], EXPECTED, OURS.public)


@given(st.binary(max_size=300), st.sampled_from([STATEMENT, ENVELOPE]), st.booleans())
def test_whatever_lies_there_is_refused_and_not_an_error(content: bytes, media_type: str, with_key: bool) -> None:
    with pytest.raises(ProvenanceError):
        verified([(media_type, content)], EXPECTED, OURS.public if with_key else None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "predicate",
    "subject",
    "externalParameters",
    "internalParameters",
    "resolvedDependencies",
    "builder",
    "digest",
)


@given(st.sampled_from(FIELDS), JSON)
def test_a_statement_with_any_field_replaced_holds_or_is_refused(field: str, value: Any) -> None:
    def replaced(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: value if name == field else replaced(one) for name, one in part.items()}
        return [replaced(one) for one in part] if isinstance(part, list) else part

    found = replaced(json.loads(plain(made())[1]))
    try:
        verified([plain(found)], EXPECTED)
    except ProvenanceError:
        pass
    else:
        assert field == "internalParameters"


def test_a_statement_of_the_same_origin_is_known_again() -> None:
    later = msgspec.json.decode(plain(made())[1].replace(b"uid.1", b"uid.2").replace(b"d-1", b"d-2"), type=Statement)
    assert has([plain(later)], made())
    assert not has([plain(later)], made(), OURS.public), "it is to be signed"
    assert has([signed(later)], made(), OURS.public)
    assert not has([signed(later, by=THEIRS)], made(), OURS.public)
    assert not has([plain(made(commit="d" * 40)), (STATEMENT, b"{"), (ENVELOPE, b"")], made())


# Envelopes and keys. -------------------------------------------------------------------------------------------------


def test_what_is_signed_is_as_the_protocol_has_it() -> None:
    """Reproduce the example of DSSE's protocol.md."""
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_the_envelope_has_the_published_shape() -> None:
    envelope = json.loads(OURS.sealed(b"{}"))
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert base64.b64decode(envelope["payload"], validate=True) == b"{}"
    [signature] = envelope["signatures"]
    assert OURS.public.verifies(base64.b64decode(signature["sig"], validate=True), pae(STATEMENT, b"{}"))


def test_a_signature_over_another_kind_of_payload_is_none() -> None:
    """A signature of another kind of payload by the same key must not pass as a signed statement."""
    private = ec.generate_private_key(ec.SECP256R1())
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

    content = private.sign(pae("text/plain", b"{}"), ec.ECDSA(SHA256()))
    envelope = {
        "payloadType": "text/plain",
        "payload": base64.b64encode(b"{}").decode(),
        "signatures": [{"sig": base64.b64encode(content).decode()}],
    }
    public = PublicKey.read(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert opened(json.dumps(envelope).encode(), public) == (b"{}", False)


P256 = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Not a private key in PEM form"),
        (b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n", "is encrypted"),
        (pem(P256, BestAvailableEncryption(b"secret")), "is encrypted"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "ECDSA key over P-256"),
        (pem(rsa.generate_private_key(65537, 2048)), "ECDSA key over P-256"),
        (P256.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "Not a private key"),
    ],
)
def test_a_key_that_cannot_sign_is_refused_with_the_cure(content: bytes, words: str) -> None:
    with pytest.raises(ProvenanceError) as caught:
        SigningKey.read(content)
    assert words in str(caught.value)
    assert "openssl genpkey -algorithm EC" in str(caught.value)


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_keys_are_read_in_both_forms_that_openssl_writes(form: PrivateFormat) -> None:
    sealed = SigningKey.read(P256.private_bytes(Encoding.PEM, form, NoEncryption())).sealed(b"{}")
    public = PublicKey.read(P256.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert opened(sealed, public) == (b"{}", True)


@pytest.mark.parametrize("content", [b"", b"ssh-ed25519 AAAA", pem(P256)])
def test_a_key_that_cannot_verify_is_refused(content: bytes) -> None:
    with pytest.raises(ProvenanceError, match="Not a public key"):
        PublicKey.read(content)


def test_the_predicate_is_slsa_s() -> None:
    assert made().predicate_type == PREDICATE_TYPE
