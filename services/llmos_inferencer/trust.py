"""Which signing keys this node believes: a trust file, or what the vault answered the first time it was asked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmos.bus import Bus
from llmos.contracts.keys import TrustAnswered, TrustRequested
from llmos.contracts.models import ModelVersion, Statement
from llmos.errors import Busy
from llmos.signing import decode_trusted, read_trusted, verify, write_trusted


class Trust:
    """Checks the signatures of model versions.

    With `file`, only its keys count; it may come later than this process. Without, the vault is asked once and its keys
    are pinned in `pinned`: trust on first use. Both files are read at every check, so that an operator's change counts
    from the next load on. Raises `Fatal` at once for a file that is there and is no trust file.
    """

    def __init__(self, bus: Bus, *, file: Path | None, pinned: Path, log: Any) -> None:
        self._bus = bus
        self._file = file
        self._pinned = pinned
        self._log = log
        if file is not None and file.exists():
            read_trusted(file)

    async def check(self, version: ModelVersion) -> None:
        """Return if a trusted key signed exactly this name, version and artifact.

        Raises `Rejected` if none did, `Busy` when no vault answers or the trust file is not there yet.
        """
        statement = Statement(version.tenant, version.model, version.version, version.artifact)
        verify(statement, version.signature, await self._keys())

    async def _keys(self) -> Mapping[str, bytes]:
        if self._file is not None:
            if not self._file.exists():
                raise Busy(f"the trust file {self._file} is not there", remedy="Copy it there from the vault's node.")
            return read_trusted(self._file)
        if not self._pinned.exists():
            answer = await self._bus.call("vault", "trust", TrustRequested())
            assert isinstance(answer, TrustAnswered)  # the bus decodes by the table of calls
            keys = decode_trusted(answer)
            if not keys:
                raise Busy("the vault has no signing key yet", remedy="Wait until the vault is ready.")
            write_trusted(self._pinned, keys)
            self._log.warning(
                "trusting the vault's keys on first use",
                keys=sorted(keys),
                pinned=str(self._pinned),
                remedy="To decide it yourself, set LLMOS_TRUSTED_KEYS to a trust file.",
            )
        return read_trusted(self._pinned)
