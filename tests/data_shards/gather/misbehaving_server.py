"""A web server on loopback that serves images, well and in every bad way we know."""

import gzip
import io
import socket
import socketserver
import struct
import threading
import time
import zlib
from collections import Counter
from contextlib import contextmanager

import numpy as np
from PIL import Image


def photograph(seed: int) -> bytes:
    """Return a small JPEG of smooth noise that no other seed gives."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    stream = io.BytesIO()
    noise.resize((96, 64), Image.Resampling.BICUBIC).save(stream, "JPEG")
    return stream.getvalue()


class Server(socketserver.ThreadingTCPServer):
    """``requests`` counts each path asked for; ``running`` how many are being answered now."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests = Counter()
        self.starts = []
        self.running = 0
        self.most_running = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def port(self):
        return self.server_address[1]

    def url(self, path, host="127.0.0.1"):
        return f"http://{host}:{self.port}/{path}"

    def handle_error(self, request, client_address):
        """Clients leave early here; that is the point."""


@contextmanager
def serve():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(socketserver.StreamRequestHandler):
    def handle(self):
        server = self.server
        words = self.rfile.readline().split()
        while self.rfile.readline().strip():
            pass
        path = words[1].decode().lstrip("/")
        with server.lock:
            server.requests[path] += 1
            server.starts.append(time.monotonic())
            server.running += 1
            server.most_running = max(server.most_running, server.running)
            count = server.requests[path]
        try:
            name, _, argument = path.partition("/")
            getattr(self, name.replace("-", "_"))(argument.partition(".")[0], count)
        finally:
            with server.lock:
                server.running -= 1

    def send(self, body=b"", status="200 OK", length=None, **headers):
        length = len(body) if length is None else length
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {length}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.wfile.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    # Well.

    def image(self, seed, count):
        self.send(photograph(int(seed)), Content_Type="image/jpeg")

    def slow_image(self, seed, count):
        self.server.closing.wait(0.05)
        self.image(seed, count)

    def odd_type(self, seed, count):
        self.send(photograph(int(seed)), Content_Type="text/html")

    def png(self, seed, count):
        stream = io.BytesIO()
        Image.open(io.BytesIO(photograph(int(seed)))).save(stream, "PNG")
        self.send(stream.getvalue(), Content_Type="image/jpeg")

    def moved(self, seed, count):
        self.send(status="301 Moved", Location=f"/image/{seed}.jpg")

    # Badly at first.

    def error_once(self, seed, count):
        self.send(status="500 Oops") if count == 1 else self.image(seed, count)

    def too_many_once(self, seed, count):
        if count == 1:
            self.send(status="429 Too Many Requests", Retry_After="1")
        else:
            self.image(seed, count)

    def reset_once(self, seed, count):
        self.reset(seed, count) if count == 1 else self.image(seed, count)

    def truncated_once(self, seed, count):
        if count == 1:
            self.send(photograph(int(seed))[:-200])
        else:
            self.image(seed, count)

    # Badly.

    def stall(self, argument, count):
        self.server.closing.wait(60)

    def stall_in_body(self, seed, count):
        body = photograph(int(seed))
        self.send(body[:100], length=len(body))
        self.server.closing.wait(60)

    def drip(self, seed, count):
        body = photograph(int(seed))
        self.send(length=len(body))
        for byte in body:
            if self.server.closing.wait(0.1):
                return
            self.wfile.write(bytes([byte]))

    def drip_headers(self, argument, count):
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not self.server.closing.wait(0.1):
            self.wfile.write(b"X")

    def reset(self, argument, count):
        # Linger 0: closing sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def hang_up(self, argument, count):
        pass

    def no_http(self, argument, count):
        self.wfile.write(b"220 ready\r\n\r\n")

    def wrong_length(self, seed, count):
        body = photograph(int(seed))
        self.send(body[:-10], length=len(body))

    def endless(self, argument, count):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n")
        while not self.server.closing.is_set():
            self.wfile.write(bytes(65536))

    def announced_huge(self, argument, count):
        self.send(photograph(1), length=10**12)

    def missing(self, argument, count):
        self.send(b"gone", status="404 Not Found")

    def unavailable_for_long(self, argument, count):
        self.send(status="503 Unavailable", Retry_After="86400")

    def page(self, argument, count):
        self.send(b"<!DOCTYPE html><html><body>This photo is gone.</body></html>")

    def empty(self, argument, count):
        self.send()

    def loop(self, argument, count):
        self.send(status="302 Found", Location=f"/loop/{argument}x")

    def to_file(self, argument, count):
        self.send(status="302 Found", Location="file:///etc/passwd")

    def to_nowhere(self, argument, count):
        self.send(status="302 Found")

    def to_port(self, port, count):
        self.send(status="302 Found", Location=f"http://[::1]:{port}/image/1.jpg")

    def truncated(self, seed, count):
        self.send(photograph(int(seed))[:-200])

    def gzip_bomb(self, argument, count):
        self.send(gzip.compress(bytes(30_000_000)), Content_Encoding="gzip")

    def bare_bomb(self, argument, count):
        self.send(gzip.compress(bytes(30_000_000)), Content_Type="image/jpeg")

    def pixel_bomb(self, argument, count):
        header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        self.send(b"\x89PNG\r\n\x1a\n" + chunk)

    def placeholder(self, argument, count):
        self.send(photograph(999))
