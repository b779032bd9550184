"""Dead letters: messages that no consumer could handle, kept whole so that an operator can replay them."""

from msgspec import Struct, field


class DeadLetter(Struct, frozen=True, omit_defaults=True):
    """`llmos.dead.<stream>.<consumer>`: a message as it was (`data` base64), why it died, after how many tries."""

    stream: str
    consumer: str
    subject: str
    sequence: int
    deliveries: int
    reason: str
    headers: dict[str, str] = field(default_factory=dict)
    data: str = ""
