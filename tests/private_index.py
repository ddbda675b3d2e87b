"""A package index with a password and a certificate of its own: private_index.py WHEELS PEM ADDRESS:PORT [PROXY]

WHEELS is a folder, or the URL of a page with links to wheels. PEM is a file with the server's certificate and key.
PROXY is the ADDRESS:PORT of a proxy that connects to the index alone, whichever host a client asks for. Needs only
Python's standard library, because it also runs in a pod. The password comes from the environment: tests look for it
in all command lines, among them those of tests that run at the same time.
"""

import base64
import http.server
import os
import re
import secrets
import selectors
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

PASSWORD = os.environ.get("INDEX_PASSWORD") or f"sesame-{secrets.token_hex(8)}"
HOST = "index.example"  # known to nobody but the proxy


def url(host: str = HOST, password: str = PASSWORD) -> str:
    return f"https://me:{password}@{host}/"


class Index(http.server.BaseHTTPRequestHandler):
    wheels: str

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        name, body = self.path.strip("/"), b""
        if known and name.endswith(".whl"):
            body = self.read(name)
        elif known:
            own = [each for each in self.names() if each.split("-")[0].replace("_", "-").lower() == name]
            body = "".join(f'<a href="/{each}">{each}</a>' for each in own).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def names(self) -> list[str]:
        if os.path.isdir(self.wheels):
            return os.listdir(self.wheels)
        return re.findall('href="(.*?[.]whl)"', self.read("").decode())

    def read(self, name: str) -> bytes:
        place = self.wheels + name
        return open(place, "rb").read() if os.path.exists(place) else urllib.request.urlopen(place).read()


class Proxy(http.server.BaseHTTPRequestHandler):
    index: tuple[str, int]

    def do_CONNECT(self) -> None:
        self.send_response(200)
        self.end_headers()
        with socket.create_connection(self.index) as index, selectors.DefaultSelector() as selector:
            others = {self.connection: index, index: self.connection}
            for end in others:
                selector.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    data = key.fileobj.recv(65536)
                    if not data:
                        return
                    others[key.fileobj].sendall(data)


def place(text: str) -> tuple[str, int]:
    address, port = text.rsplit(":", 1)
    return address, int(port)


def serve(wheels: str, pem: str, index: str, proxy: str = "") -> None:
    Index.wheels, Proxy.index = wheels, place(index)
    if proxy:
        threading.Thread(target=http.server.ThreadingHTTPServer(place(proxy), Proxy).serve_forever).start()
    server = http.server.ThreadingHTTPServer(place(index), Index)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


@contextmanager
def running(wheels: os.PathLike, pem: os.PathLike, address: str) -> Iterator[str]:
    """Runs the index and the proxy at this address, and yields the proxy's URL."""
    places = [f"{address}:8443", f"{address}:3128"]
    process = subprocess.Popen(
        [sys.executable, __file__, f"{wheels}/", pem, *places],
        env={**os.environ, "INDEX_PASSWORD": PASSWORD},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://{places[1]}"
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    serve(*sys.argv[1:])
