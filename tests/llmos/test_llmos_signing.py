"""Signing: a signature holds for exactly one statement by exactly one trusted key."""

import base64
from pathlib import Path

import msgspec
import pytest

from llmos.contracts.keys import TrustAnswered
from llmos.contracts.models import Signature, Statement
from llmos.errors import Fatal, Rejected
from llmos.signing import SigningKey, canonical, decode_trusted, encode_trusted, read_trusted, verify, write_trusted

STATEMENT = Statement(tenant="acme", model="tickets", version=3, artifact="sha256:" + "ab" * 32)
# Key pair of RFC 8032, section 7.1, test 1; the signature was made by `openssl pkeyutl -sign -rawin`.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
SIGNATURE = "ayp64jNmTgmslb0OqB1rx3OOambSe/v8gf+XrqOTtyJrqbPj2yuDpkOfQs66HGBAWum/QvN9r8L0kReRLkS/Bw=="


@pytest.fixture
def key() -> SigningKey:
    return SigningKey("main", SEED)


def test_the_canonical_form_is_sorted_json_without_spaces() -> None:
    text = f'{{"artifact":"{STATEMENT.artifact}","model":"tickets","tenant":"acme","version":3}}'
    assert canonical(STATEMENT) == text.encode()


def test_a_seed_gives_the_public_key_of_the_rfc(key: SigningKey) -> None:
    assert key.public == PUBLIC


def test_a_statement_has_one_signature_that_never_changes(key: SigningKey) -> None:
    assert key.sign(STATEMENT) == Signature("main", SIGNATURE)
    verify(STATEMENT, Signature("main", SIGNATURE), {"main": PUBLIC})


@pytest.mark.parametrize(
    "changed",
    [{"tenant": "other"}, {"model": "ticket"}, {"version": 4}, {"artifact": "sha256:" + "ac" * 32}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_changed_statement_does_not_verify(key: SigningKey, changed: dict[str, object]) -> None:
    with pytest.raises(Rejected, match="does not verify"):
        verify(msgspec.structs.replace(STATEMENT, **changed), key.sign(STATEMENT), {"main": key.public})


def test_a_changed_or_foreign_signature_does_not_verify(key: SigningKey) -> None:
    trusted = {"main": key.public}
    raw = base64.b64decode(SIGNATURE)
    foreign = SigningKey("main", SigningKey.new_secret()).sign(STATEMENT).signature
    wrong = [base64.b64encode(bytes([raw[0] ^ 1]) + raw[1:]).decode(), "", "no base64!", SIGNATURE[:40], foreign]
    for text in wrong:
        with pytest.raises(Rejected, match="does not verify"):
            verify(STATEMENT, Signature("main", text), trusted)


def test_no_signature_and_an_unknown_key_are_told_apart(key: SigningKey) -> None:
    with pytest.raises(Rejected, match="is not signed"):
        verify(STATEMENT, None, {"main": key.public})
    with pytest.raises(Rejected, match="not among the trusted keys"):
        verify(STATEMENT, key.sign(STATEMENT), {})


def test_a_trust_file_holds_what_was_written(tmp_path: Path, key: SigningKey) -> None:
    path = tmp_path / "below" / "trusted_keys.json"
    write_trusted(path, {"main": key.public, "old": bytes(32)})
    assert read_trusted(path) == {"main": key.public, "old": bytes(32)}
    assert [file.name for file in path.parent.iterdir()] == ["trusted_keys.json"]
    assert decode_trusted(encode_trusted({"main": key.public})) == {"main": key.public}


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"[]",
        b'{"keys": {"\xff": ""}}',
        b"[" * 10_000,
        b'{"keys": {"main": "AAAA"}}',
        b'{"keys": {"main": "?"}}',
    ],
)
def test_a_missing_or_wrong_trust_file_stops_the_reader_with_a_remedy(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "trusted_keys.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Fatal, match=r"trusted_keys\.json") as stopped:
        read_trusted(path)
    assert stopped.value.problem.remedy


def test_a_private_key_does_not_show_in_a_repr(key: SigningKey) -> None:
    assert repr(key) == "SigningKey('main')"


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(Rejected):
        SigningKey("main", b"short")
    with pytest.raises(Rejected):
        decode_trusted(TrustAnswered({"main": "AAAA"}))
