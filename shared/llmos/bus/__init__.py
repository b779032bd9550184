"""The bus: NATS JetStream behind verbs. The only package that imports nats.

Saying: `emit`, `publish`, `tell`. Hearing: `work` (a queue, acked), `follow` (a history, in order). Asking: `call`,
`serve`, `ask`. Keeping: `bucket`. What a method promises about persistence stands in its docstring.
"""

from llmos.bus.api import StreamState
from llmos.bus.bucket import Bucket, Entry
from llmos.bus.connection import Bus
from llmos.bus.delivery import Delivery
from llmos.bus.follow import Heard
from llmos.bus.store import Conflict, Fence, Message

__all__ = ["Bucket", "Bus", "Conflict", "Delivery", "Entry", "Fence", "Heard", "Message", "StreamState"]
