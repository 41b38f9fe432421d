"""A web server on the loopback network whose failures are known, for benchmarks of fetching.

What is asked for says what comes: the first part of an address's path is a name in `answers`. One process, as little
work as Python can do: whole answers lie ready.
"""

import asyncio
import io
import socket
import time
import urllib.request
from contextlib import suppress
from multiprocessing import get_context
from types import TracebackType
from typing import Self

HOSTS = [f"127.0.0.{n}" for n in range(1, 41)]
SILENT = [f"127.0.1.{n}" for n in range(1, 51)]  # hosts that take connections and never answer
LARGE = 3_000_000  # bytes of what is too large


def photos(number: int, width: int = 640, height: int = 480) -> list[bytes]:
    """JPEGs as smooth and as grainy as photographs; about 80 kB at 640 x 480 pixels."""
    import numpy as np
    from PIL import Image

    made = []
    for seed in range(number):
        random_ = np.random.default_rng(seed)
        total = np.zeros((height, width, 3))
        for octave in range(8):
            cells = random_.standard_normal((3, 3 * 2**octave // 2 + 2, 2 ** (octave + 1) + 2)).astype(np.float32)
            layers = [Image.fromarray(layer).resize((width, height), Image.Resampling.BICUBIC) for layer in cells]
            total += np.stack(layers, -1) * 0.7**octave
        grey = total.mean(-1, keepdims=True)
        pixels = 128 + 60 * (grey + (total - grey) / 2 + 0.08 * random_.standard_normal((height, width, 1)))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
        made.append(file.getvalue())
    return made


def answers(images: list[bytes]) -> dict[bytes, bytes]:
    """What the server says, by the first part of the path."""
    from PIL import Image

    bomb = io.BytesIO()
    Image.new("L", (8000, 8000)).save(bomb, "PNG")
    photo, padding = images[0], bytes(LARGE)
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (photo, padding)) + b"0\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
    said = {
        "page.as.jpg": answer(b"<html><body>This picture was moved.</body></html>"),
        "nothing": answer(b""),
        "truncated": answer(photo[: len(photo) // 2]),
        "bomb": answer(bomb.getvalue()),
        "opted-out": answer(photo, more="X-Robots-Tag: noai\r\n"),
        "large": answer(photo + padding),
        "unending": chunked + chunks,
        "loop": answer(b"", "302 Found", "Location: /loop/again\r\n"),
        "cut": answer(photo)[: len(photo) // 2],
        "silent": b"",
        "forget": answer(b""),
        "busy": answer(b"", "503 Service Unavailable"),
    }
    said |= {code: answer(b"no", f"{code} Sorry") for code in ("403", "404", "410", "429", "500")}
    said |= {f"photo-{number}": answer(image) for number, image in enumerate(images)}
    return {name.encode(): content for name, content in said.items()}


def answer(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    """One HTTP answer."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def serve(said: dict[bytes, bytes], port: int) -> None:
    """Answer by the first part of the path, from bytes made beforehand: as little work as Python can do."""
    asked: set[bytes] = set()

    class Answering(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.rest = transport, b""

        def data_received(self, data: bytes) -> None:
            *requests, self.rest = (self.rest + data).split(b"\r\n\r\n")
            for request in requests:
                path = request.split(b" ", 2)[1]
                name = path.split(b"/", 2)[1]
                if name == b"forget":
                    asked.clear()
                elif name == b"once":  # busy at first, and then the photo of that number
                    name = b"photo-" + path.split(b"/")[2] if path in asked else b"busy"
                    asked.add(path)
                self.transport.write(said.get(name, said[b"404"]))
                if name == b"cut" or (b"onnection: close" in request and name != b"silent"):
                    self.transport.close()

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Answering, HOSTS + SILENT, port, backlog=1024)
        for one in server.sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # an answer is one call
        await server.serve_forever()

    asyncio.run(run())


class Server:
    """The server's process; `with` starts and ends it. port: the same on all hosts."""

    def __init__(self, images: list[bytes]) -> None:
        with socket.socket() as free:
            free.bind((HOSTS[0], 0))
            self.port = free.getsockname()[1]
        self._process = get_context("spawn").Process(target=serve, args=(answers(images), self.port), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        for _ in range(200):
            with suppress(OSError):
                self.forget()
                return self
            time.sleep(0.05)
        raise SystemExit("the server did not start; are addresses such as 127.0.0.2 this machine's, as on Linux?")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()

    def forget(self) -> None:
        """Let what is busy at first be busy again."""
        urllib.request.urlopen(f"http://{HOSTS[0]}:{self.port}/forget", timeout=5).close()

    def processor(self) -> float:
        """Seconds of processor time so far."""
        import psutil

        return float(sum(psutil.Process(self._process.pid).cpu_times()[:2]))
