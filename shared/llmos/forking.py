"""A template process that has imported heavy modules once and forks children that run one function each.

A cold start of torch and transformers takes seconds; a fork of a process that has them takes a tenth of one. The
template and its children are killed with the service (PR_SET_PDEATHSIG, and everywhere the end of their socket), and
a child's crash is only an `Exit`. The template must stay single-threaded: preload modules, never run a tensor
operation in it.

    template = Template(preload=["torch", "transformers"])
    child = await template.fork("my_room.training:run", spec_bytes, env={"CUDA_VISIBLE_DEVICES": "0"})
    async for message in child: ...            # bytes that the function sent
    exit = await child.wait()                  # .ok, .code, .signal, .error (traceback)

    def run(args: bytes, channel: Channel) -> None:            # in the child
        channel.send(b"...")                   # to the service
        channel.received()                     # what the service sent since the last look
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Mapping, Sequence

from msgspec import Struct

from llmos._forked import Channel, serve_forks
from llmos.errors import Busy, Fatal

__all__ = ["Channel", "Child", "Exit", "Template"]

_HEAD = struct.Struct(">I")
_FRAME = struct.Struct(">IB")
_START = "import sys; from llmos.forking import main; main(sys.argv[1:])"
_LINGER_S = 1.0  # how long a dead child's socket may stay open in its own children


class Exit(Struct, frozen=True):
    """How a child ended: its exit code, or the name of the signal that killed it; `error` is its last traceback."""

    code: int
    signal: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.code == 0 and not self.signal

    def __str__(self) -> str:
        if self.signal:
            hint = " (out of memory, or killed from outside)" if self.signal == "SIGKILL" else ""
            return f"killed by {self.signal}{hint}"
        last = self.error.strip().rsplit("\n", 1)[-1]
        return f"exit code {self.code}" + (f": {last}" if last else "")


class Child:
    """A forked child. Iterate over it for its messages; the iteration ends when it does."""

    def __init__(
        self, template: "Template", key: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pid = 0
        self._template = template
        self._key = key
        self._writer = writer
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._error = ""
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(reader))
        self._ending: asyncio.Task[None] | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self._messages.get()) is not None:
            yield message
        self._messages.put_nowait(None)  # a second iteration ends as well

    async def send(self, message: bytes) -> None:
        """Hand a message to the child's `Channel.received`. A child that is gone is no error: `wait` tells."""
        self._writer.write(_FRAME.pack(len(message), ord("M")) + message)
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def terminate(self) -> None:
        """Send SIGTERM."""
        await self._template._signal(self, signal.SIGTERM)

    async def kill(self) -> None:
        """Send SIGKILL."""
        await self._template._signal(self, signal.SIGKILL)

    async def wait(self) -> Exit:
        """Wait until the child is gone and all its messages are read."""
        return await asyncio.shield(self._ended)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size, kind = _FRAME.unpack(await reader.readexactly(_FRAME.size))
                body = await reader.readexactly(size)
                if kind == ord("E"):
                    self._error = body.decode(errors="replace")
                else:
                    self._messages.put_nowait(body)

    def _gone(self, status: int) -> None:
        self._ending = self._ending or asyncio.create_task(self._end(status))

    async def _end(self, status: int) -> None:
        await asyncio.wait({self._reading}, timeout=_LINGER_S)
        self._reading.cancel()
        self._writer.close()
        self._messages.put_nowait(None)
        code = os.waitstatus_to_exitcode(status)
        name = signal.Signals(-code).name if code < 0 else ""
        self._ended.set_result(Exit(code, name, self._error))


class Template:
    """A preloaded process to fork from. `env` is added to its environment before anything is imported.

    If it dies, its children die with it, and the next `fork` starts a new one.
    """

    def __init__(self, preload: Sequence[str] = (), *, env: Mapping[str, str] | None = None) -> None:
        self._preload = list(preload)
        self._env = dict(env or {})
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._listening: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._sending = asyncio.Lock()
        self._keys = 0
        self._children: dict[int, Child] = {}
        self._forked: dict[int, asyncio.Future[int]] = {}

    @property
    def pid(self) -> int:
        """The template's process id, 0 when it does not run."""
        return self._process.pid if self._process and self._control else 0

    async def start(self) -> None:
        """Start the template, if it does not run, and wait until it has imported everything.

        Raises `Fatal` when an import fails.
        """
        async with self._starting:
            if self._control is not None:
                return
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            with theirs:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-c", _START, str(theirs.fileno()), str(os.getpid()), *self._preload,
                    env={**os.environ, **self._env}, pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for the service; it tells its children itself
                )  # fmt: skip
            try:
                first = await _receive(ours)
            except BaseException:
                ours.close()
                self._process.kill()
                raise
            if first is None or "error" in first:
                ours.close()
                code = await self._process.wait()
                reason = first["error"] if first else f"exit code {code}"
                raise Fatal(
                    f"The template process could not start: {reason}",
                    remedy="Check that the service's extra is installed.",
                )
            self._control = ours
            self._listening = asyncio.create_task(self._listen(ours, self._process))

    async def fork(self, target: str, args: bytes = b"", *, env: Mapping[str, str] | None = None) -> Child:
        """Fork a child that runs `target` ("module:function") with `args` and a `Channel`; `env` is set before that.

        Libraries that are preloaded have read their environment already. Raises `Fatal` when the template can't start
        and `Busy` when it dies meanwhile.
        """
        await self.start()
        assert self._control is not None
        ours, theirs = socket.socketpair()
        self._keys += 1
        key = self._keys
        answer = self._forked[key] = asyncio.get_running_loop().create_future()
        child = Child(self, key, *await asyncio.open_connection(sock=ours))
        self._children[key] = child
        request = json.dumps({"fork": key, "target": target, "env": dict(env or {})}).encode() + b"\n" + args
        try:
            with theirs:
                await self._send(self._control, request, theirs.fileno())
            child.pid = await answer
        except BaseException:
            child._writer.close()  # whatever was forked sees the end of its socket and dies
            self._children.pop(key, None)
            raise
        finally:
            self._forked.pop(key, None)
        return child

    async def stop(self) -> None:
        """Kill the children, end the template, and wait for both."""
        children = list(self._children.values())
        if self._control is not None:
            self._control.shutdown(socket.SHUT_WR)
        if self._listening is not None:
            await self._listening
        for child in children:
            await child.wait()

    async def _signal(self, child: Child, number: signal.Signals) -> None:
        control = self._control
        if control is not None and child._key in self._children:
            request = json.dumps({"signal": child._key, "number": int(number)}).encode() + b"\n"
            with contextlib.suppress(Busy):
                await self._send(control, request)

    async def _send(self, control: socket.socket, request: bytes, fd: int | None = None) -> None:
        """Write one request; its length travels with the file descriptor. Raises `Busy` if the template is gone."""
        async with self._sending:
            head = _HEAD.pack(len(request))
            try:
                while True:
                    try:
                        socket.send_fds(control, [head], [] if fd is None else [fd])
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.01)
                await asyncio.get_running_loop().sock_sendall(control, request)
            except OSError as error:
                raise _died() from error

    async def _listen(self, control: socket.socket, process: asyncio.subprocess.Process) -> None:
        """Take the template's messages until it is gone; then every child is."""
        try:
            while (message := await _receive(control)) is not None:
                if "pid" in message:
                    if (answer := self._forked.get(message["fork"])) and not answer.done():
                        answer.set_result(message["pid"])
                elif child := self._children.pop(message["exited"], None):
                    child._gone(message["status"])
        finally:
            self._control = None
            control.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            for answer in self._forked.values():
                if not answer.done():
                    answer.set_exception(_died())
            for child in self._children.values():
                child._gone(int(signal.SIGKILL))
            self._children.clear()


def _died() -> Busy:
    return Busy("The template process died", remedy="Try again: the next fork starts a new one.")


async def _receive(control: socket.socket) -> dict[str, int] | None:
    """One message of the template; `None` when it is gone."""
    loop = asyncio.get_running_loop()

    async def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not (chunk := await loop.sock_recv(control, size - len(data))):
                raise ConnectionResetError
            data += chunk
        return data

    try:
        (size,) = _HEAD.unpack(await exactly(_HEAD.size))
        message: dict[str, int] = json.loads(await exactly(size))
    except ConnectionError:
        return None
    return message


def main(argv: Sequence[str]) -> None:
    """The template process: file descriptor of its control socket, its parent's id, modules to import."""
    serve_forks(socket.socket(fileno=int(argv[0])), int(argv[1]), argv[2:])
