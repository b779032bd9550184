"""The envelope of every message: CloudEvents 1.0 attributes in NATS headers (binary mode), plus cause and trace."""

from collections.abc import Mapping

from msgspec import Struct

SPEC_VERSION = "1.0"
CONTENT_TYPE = "application/json"


class Envelope(Struct, frozen=True):
    """Who said what, when, why.

    `id` is also the `Nats-Msg-Id`: a message published twice with one id is stored once.
    `cause` is the id of the message that led to this one; `time` is RFC 3339.
    `traceparent` and `tracestate` are W3C Trace Context.
    """

    id: str
    source: str = ""
    type: str = ""
    subject: str = ""
    time: str = ""
    cause: str = ""
    traceparent: str = ""
    tracestate: str = ""

    def to_headers(self) -> dict[str, str]:
        """NATS headers; attributes without a value are left out."""
        headers = {
            "ce-specversion": SPEC_VERSION,
            "ce-id": self.id,
            "ce-source": self.source,
            "ce-type": self.type,
            "ce-subject": self.subject,
            "ce-time": self.time,
            "ce-datacontenttype": CONTENT_TYPE,
            "ce-cause": self.cause,
            "traceparent": self.traceparent,
            "tracestate": self.tracestate,
        }
        return {name: value for name, value in headers.items() if value}

    @classmethod
    def from_headers(cls, headers: Mapping[str, str] | None, *, default_id: str = "") -> "Envelope":
        """Read an envelope; a message from a plain client may have no header at all."""
        got = {name.lower(): value for name, value in (headers or {}).items()}
        return cls(
            id=got.get("ce-id") or got.get("nats-msg-id") or default_id,
            source=got.get("ce-source", ""),
            type=got.get("ce-type", ""),
            subject=got.get("ce-subject", ""),
            time=got.get("ce-time", ""),
            cause=got.get("ce-cause", ""),
            traceparent=got.get("traceparent", ""),
            tracestate=got.get("tracestate", ""),
        )
