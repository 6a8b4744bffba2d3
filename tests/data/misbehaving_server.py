"""A web server of this machine that gives the files of a folder, and misbehaves as it is told."""

import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server:
    """``faults`` by the end of a path; a fault may be limited to the first ``times`` requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, str] = {}
        self.times: dict[str, int] = {}
        self.requests: Counter[str] = Counter()
        self.asked = threading.Event()
        """Set when a request hangs."""
        self.released = threading.Event()
        """Lets requests that hang end."""
        self.url = ""

    def fault_of(self, path: str) -> str:
        for end, fault in self.faults.items():
            if path.endswith(end):
                if end in self.times:
                    self.times[end] -= 1
                    if self.times[end] < 0:
                        return ""
                return fault
        return ""


def _handler(server: Server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = server.folder / self.path.lstrip("/")
            server.requests[path.name] += 1
            fault = server.fault_of(self.path)
            if fault.isdigit() or not path.is_file():
                self.send_error(int(fault or 404))
                return
            content = path.read_bytes()
            half = len(content) // 2
            if fault == "changed":
                content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
            self.send_response(200)
            length = {"says less": half, "says more": 2 * len(content)}.get(fault, len(content))
            if fault == "longer":
                content += bytes(4096)
                length = len(content)
            if fault == "no length, short":
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.close_connection = fault != ""
            if fault == "hangs":
                self.wfile.write(content[:half])
                self.wfile.flush()
                server.asked.set()
                server.released.wait()
            elif fault in ("ends early", "no length, short"):
                self.wfile.write(content[:half])
            else:
                self.wfile.write(content)

        def log_message(self, *_) -> None:
            pass

    return Handler


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_) -> None:
        """Say nothing of clients that leave."""


@contextmanager
def serving(folder: Path):
    """Yield a :class:`Server` of a folder."""
    server = Server(folder)
    listener = _Listener(("127.0.0.1", 0), _handler(server))
    server.url = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
