"""The other side of `llmos.forking`: what runs in the template process and in its children. Standard library only."""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import queue
import select
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

_HEAD = struct.Struct(">I")
_FRAME = struct.Struct(">IB")
_PR_SET_PDEATHSIG = 1
_ERROR_BYTES = 16 << 10


class Channel:
    """A child's side of its socket to the service; its end means that the service is gone, and ends the child too."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="channel", daemon=True).start()

    def send(self, message: bytes) -> None:
        """Hand a message to the service; blocks only while its socket is full."""
        self._write(message, b"M")

    def received(self) -> list[bytes]:
        """The messages from the service since the last look, without waiting."""
        messages = []
        with contextlib.suppress(queue.Empty):
            while True:
                messages.append(self._inbox.get_nowait())
        return messages

    def _write(self, message: bytes, kind: bytes) -> None:
        with self._lock:
            self._sock.sendall(_FRAME.pack(len(message), kind[0]) + message)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                size, _ = _FRAME.unpack(_exactly(self._sock, _FRAME.size))
                self._inbox.put(_exactly(self._sock, size))
        os.kill(os.getpid(), signal.SIGKILL)


def serve_forks(control: socket.socket, parent: int, preload: Sequence[str]) -> None:
    """Import `preload`, then fork a child for each request until the service is gone. Returns never in a child."""
    _die_with(parent)
    try:
        if sys.platform == "linux":  # elsewhere a fork after such imports is unsafe: the child imports them itself
            for name in preload:
                importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 — whatever a module raises while it is imported is told to the service
        traceback.print_exc()
        _tell(control, {"error": f"{type(error).__name__}: {error}"})
        return
    gc.collect()
    gc.freeze()  # a collection in a child then copies no page of the template
    woken, wake = socket.socketpair()
    woken.setblocking(False)
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    _tell(control, {"ready": 1})
    children: dict[int, int] = {}  # key -> pid, until reaped: a signal can't reach a stranger
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                woken.recv(4096)
            _reap(control, children)
        if control in ready and not _handle(control, children, (woken, wake)):
            break
    for pid in children.values():
        os.kill(pid, signal.SIGKILL)
    while children:
        _reap(control, children, wait=True)


def _handle(control: socket.socket, children: dict[int, int], own: tuple[socket.socket, ...]) -> bool:
    """Do one request; false when the service is gone."""
    head, fds, _, _ = socket.recv_fds(control, _HEAD.size, 1)
    if len(head) < _HEAD.size:
        return False
    (size,) = _HEAD.unpack(head)
    first, _, args = _exactly(control, size).partition(b"\n")
    request = json.loads(first)
    if "signal" in request:
        if pid := children.get(request["signal"]):
            os.kill(pid, request["number"])
        return True
    template = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        for sock in (control, *own):
            sock.close()
        _run(socket.socket(fileno=fds[0]), template, request, args)
    os.close(fds[0])
    children[request["fork"]] = pid
    _tell(control, {"fork": request["fork"], "pid": pid})
    return True


def _reap(control: socket.socket, children: dict[int, int], *, wait: bool = False) -> None:
    keys = {pid: key for key, pid in children.items()}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, 0 if wait else os.WNOHANG))[0]:
            if (key := keys.get(ended[0])) is not None:
                del children[key]
                _tell(control, {"exited": key, "status": ended[1]})


def _run(sock: socket.socket, template: int, request: dict[str, object], args: bytes) -> None:
    """The life of a child; never returns."""
    code = 1
    channel: Channel | None = None
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _die_with(template)
        os.set_inheritable(sock.fileno(), False)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("500")  # the kernel takes the child before the service
        channel = Channel(sock)
        os.environ.update(request["env"])  # type: ignore[call-overload]
        module, _, name = str(request["target"]).partition(":")
        getattr(importlib.import_module(module), name)(args, channel)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:  # noqa: BLE001 — nothing lies above: what is not told here is lost
        text = traceback.format_exc()
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            if channel is not None:
                channel._write(text[-_ERROR_BYTES:].encode(), b"E")
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # the template's exit handlers are not the child's


def _die_with(parent: int) -> None:
    """Be killed when the parent dies, however it dies (elsewhere than on Linux the end of the socket does it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:  # MSG_WAITALL may come back early when a child ends
        if not (chunk := sock.recv(size - len(data))):
            raise ConnectionResetError("the service is gone")
        data += chunk
    return bytes(data)


def _tell(control: socket.socket, message: dict[str, object]) -> None:
    body = json.dumps(message).encode()
    with contextlib.suppress(OSError):
        control.sendall(_HEAD.pack(len(body)) + body)
