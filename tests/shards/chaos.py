"""A proxy between an S3 client and the server that does what networks and busy servers do. Signatures stay
valid: the client signs the proxy's address, and requests pass unchanged.

    with chaos(server.port) as proxy:
        client_endpoint = proxy.endpoint
        proxy.faults["reset"] = Fault(probability=0.05)
"""

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

KINDS = ("latency", "slow_down", "reset", "truncate", "stall", "flip")

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_BLOCK = 65536


@dataclass
class Fault:
    """Befalls an answer with `probability`, `times` times at most. seconds: of a latency or a stall."""

    probability: float = 1.0
    times: int = 10**9
    seconds: float = 0.2


@dataclass
class Proxy:
    """requests: every GET and HEAD, as `GET /bucket/key bytes=0-99`. happened: faults of each kind."""

    upstream: int
    seed: int = 0
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _strikes(self, kind: str) -> Fault | None:
        with self._lock:
            fault = self.faults.get(kind)
            if fault is None or fault.times <= 0 or self._random.random() >= fault.probability:
                return None
            fault.times -= 1
            self.happened[kind] += 1
            return fault

    def _serve(self, client: socket.socket) -> None:
        """Requests of one connection, one after the other, over one connection to the server."""
        with (
            closing(client),
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self.upstream)) as server,
        ):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            buffered = b""
            while True:
                head, buffered = _head(client, buffered)
                if not head:
                    return
                method, path = head.split(b" ", 2)[:2]
                if method not in (b"GET", b"HEAD"):
                    server.sendall(head + buffered)
                    threading.Thread(target=_pump, args=(client, server), daemon=True).start()
                    _pump(server, client)
                    return
                wanted = (_field(head, b"range") or b"all").decode()
                self.requests.append(f"{method.decode()} {path.split(b'?')[0].decode()} {wanted}")
                if (fault := self._strikes("latency")) is not None:
                    time.sleep(fault.seconds)
                if self._strikes("slow_down") is not None:
                    length = len(_SLOW_DOWN)
                    client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\n\r\n%s" % (length, _SLOW_DOWN))
                    continue
                server.sendall(head)
                if not self._answer(client, server, method == b"HEAD"):
                    return

    def _answer(self, client: socket.socket, server: socket.socket, head_only: bool) -> bool:
        """Passes one answer on; False when the connection is no longer of use."""
        head, body = _head(server, b"")
        given = _field(head, b"content-length")
        if given is None:  # chunked, such as a long listing: nothing befalls it
            client.sendall(head + body)
            _pump(server, client)
            return False
        length = int(given)
        if head_only or length == 0:
            client.sendall(head)
            return True
        cut = self._random.randrange(length)  # where the fault sits
        kind, fault = next(
            ((kind, found) for kind in KINDS[2:] if (found := self._strikes(kind)) is not None), ("", None)
        )
        client.sendall(head)
        sent = 0
        while sent < length:
            block = body or server.recv(_BLOCK)
            body = b""
            if not block:
                return False
            if fault is not None and sent + len(block) > cut:
                at = cut - sent
                if kind == "flip":
                    block = block[:at] + bytes([block[at] ^ 1 << self._random.randrange(8)]) + block[at + 1 :]
                    fault = None
                else:
                    client.sendall(block[:at])
                    if kind == "stall":
                        time.sleep(fault.seconds)
                    if kind == "reset":
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return False
            client.sendall(block)
            sent += len(block)
        return True


def _head(sender: socket.socket, buffered: bytes) -> tuple[bytes, bytes]:
    """Everything up to the empty line, and what came beyond it."""
    while b"\r\n\r\n" not in buffered:
        block = sender.recv(_BLOCK)
        if not block:
            return b"", b""
        buffered += block
    head, _, rest = buffered.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _field(head: bytes, wanted: bytes) -> bytes | None:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == wanted:
            return value.strip()
    return None


def _pump(sender: socket.socket, receiver: socket.socket) -> None:
    with suppress(OSError):
        while block := sender.recv(_BLOCK):
            receiver.sendall(block)
        receiver.shutdown(socket.SHUT_WR)


@contextmanager
def chaos(upstream: int, seed: int = 0) -> Iterator[Proxy]:
    """A proxy to the server on port `upstream`, without faults at first."""
    proxy = Proxy(upstream, seed)
    try:
        yield proxy
    finally:
        proxy.close()
