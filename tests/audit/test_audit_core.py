"""What the log says about what is heard: an entry follows from the one before it, and always fits."""

from hashlib import sha256

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from llmos.auditfiles import decode_entry, encode_entry, follow_sequence
from llmos.contracts.audit import ENTRY_LIMIT, GAP, REMADE, LogEntry
from llmos_audit.core import decide, entry_of, job_of
from llmos_audit.state import Position, apply


def heard(sequence: int, data: str = "{}") -> LogEntry:
    return LogEntry(sequence, "llmos.evt.job.cancelled.acme.j1", {"ce-id": f"e{sequence}"}, data)


def test_the_next_message_is_one_entry() -> None:
    assert decide(Position(4, heard(4)), heard(5)) == [heard(5)]


def test_a_message_further_on_is_an_entry_after_a_gap() -> None:
    gap, entry = decide(Position(4, heard(4)), heard(8))
    assert (gap.subject, gap.sequence, gap.data) == (GAP, 7, '{"first":5,"last":7}')
    assert entry == heard(8)


def test_the_newest_message_heard_again_adds_nothing() -> None:
    assert decide(Position(4, heard(4)), heard(4)) == []


def test_another_message_at_a_sequence_that_was_heard_means_a_new_stream() -> None:
    for other in (heard(4, "[1]"), heard(3), heard(1)):
        (remade,) = decide(Position(4, heard(4)), other)
        assert (remade.subject, remade.sequence) == (REMADE, 0)
        assert msgspec.json.decode(remade.data)["heard"] == 4


@given(st.lists(st.integers(1, 12), max_size=40))
def test_whatever_is_heard_every_entry_follows_from_the_one_before(sequences: list[int]) -> None:
    position, last = Position(), 0
    for sequence in sequences:
        for entry in decide(position, heard(sequence)):
            last = follow_sequence(last, entry)  # raises if it does not
            position = apply(position, entry)
            assert position.sequence == last


@given(
    st.binary(max_size=200_000) | st.text(max_size=30_000).map(str.encode),
    st.dictionaries(st.text(max_size=40), st.text(max_size=9_000), max_size=12),
)
def test_every_entry_fits_and_says_what_it_leaves_out(data: bytes, headers: dict[str, str]) -> None:
    entry = entry_of(7, "llmos.evt.a.b.c." + "d" * 128, headers, data)
    encoded = encode_entry(entry)
    assert len(encoded) <= ENTRY_LIMIT
    assert decode_entry(encoded) == entry
    if entry.digest:
        assert (entry.data, entry.size, entry.digest) == ("", len(data), f"sha256:{sha256(data).hexdigest()}")
    else:
        assert entry.data.encode() == data
    if entry.headers != headers:
        whole = msgspec.json.encode(headers)
        assert entry.headers["llmos-headers-digest"] == f"sha256:{sha256(whole).hexdigest()}"


def test_a_body_of_the_largest_size_that_fits_is_kept_and_one_byte_more_is_not() -> None:
    room = ENTRY_LIMIT - len(encode_entry(heard(1, "")))
    assert entry_of(1, heard(1).subject, heard(1).headers, b"x" * room).data == "x" * room
    assert entry_of(1, heard(1).subject, heard(1).headers, b"x" * (room + 1)).size == room + 1


def test_a_job_is_found_in_the_body_in_the_version_or_in_the_subject() -> None:
    def about(data: str, subject: str = "llmos.evt.task.started.acme.t1") -> str:
        return job_of(LogEntry(1, subject, {}, data))

    assert about('{"job":"j1","version":3}') == "j1"
    assert about('{"version":{"job":"j2","model":"m"}}') == "j2"
    assert about("", "llmos.evt.job.failed.acme.j3") == "j3"
    assert about("not json") == about("[]") == about('{"tenant":"acme"}') == ""


def test_what_is_no_event_has_no_event_id() -> None:
    assert heard(3).event == "e3"
    assert LogEntry(1, "llmos.evt.a.b.c.d", {"Nats-Msg-Id": "m1"}, "{}").event == "m1"
    assert LogEntry(1, GAP, {"ce-id": "e3"}, "{}").event == ""
