"""Gives new pods the packages that the scheduler's pod has installed, so that they do not install them again.

`share.py serve` runs beside the scheduler, `share.py fetch` in new pods before they start. KEY names the packages: a
server refuses to send others. Both need a certificate of the release, and only the scheduler's is a server's, so nobody
else can send packages to a pod. SERVER is the server's host. `fetch` ends with status 1 if it could not get everything;
then the pod installs the packages itself.
"""

import os
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading

PORT = 8789
FOLDER = "/opt/dask"
TLS = "/etc/dask-tls"
TRANSFERS = threading.BoundedSemaphore(8)  # at once; further pods install the packages themselves
BLOCK = 1 << 20
TAR = ["tar", "--blocking-factor", "128", "--directory", FOLDER]  # 64 KiB, as much as a pipe holds


def context(purpose):
    found = ssl.create_default_context(purpose, cafile=f"{TLS}/ca.crt")
    found.check_hostname = False  # the certificates name roles, see `fetch`
    found.verify_mode = ssl.CERT_REQUIRED
    found.load_cert_chain(f"{TLS}/tls.crt", f"{TLS}/tls.key")
    return found


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.settimeout(60)
        try:
            with context(ssl.Purpose.CLIENT_AUTH).wrap_socket(self.request, server_side=True) as stream:
                wanted = stream.recv(100).decode()
                if wanted == os.environ["KEY"] and TRANSFERS.acquire(blocking=False):
                    try:
                        send(stream)
                    finally:
                        TRANSFERS.release()
                stream.unwrap()
        except OSError as error:
            print(f"{self.client_address[0]}: {error}", file=sys.stderr, flush=True)


def send(stream):
    names = sorted(set(os.listdir(FOLDER)) - {"complete"})
    with subprocess.Popen([*TAR, "--create", *names], stdout=subprocess.PIPE) as tar:
        assert tar.stdout
        try:
            while block := tar.stdout.read(BLOCK):
                stream.sendall(block)
        finally:
            tar.kill()  # it has ended, unless the pod is gone


def serve():
    # Else the first process of a container ignores the signal, and the pod ends only after the grace period.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    socketserver.ThreadingTCPServer.daemon_threads = True
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    socketserver.ThreadingTCPServer.address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socketserver.ThreadingTCPServer(("", PORT), Handler) as server:
        server.serve_forever()


def fetch():
    with socket.create_connection((os.environ["SERVER"], PORT), timeout=5) as plain:
        plain.settimeout(60)
        wrapped = context(ssl.Purpose.SERVER_AUTH).wrap_socket(plain, suppress_ragged_eofs=False)
        with wrapped as stream:
            names = [name for [name] in stream.getpeercert()["subject"]]
            if names != [("commonName", "scheduler")]:
                raise OSError(f"the server's certificate is that of {names}")
            stream.sendall(os.environ["KEY"].encode())
            if not (block := stream.recv(BLOCK)):
                raise OSError("the scheduler's pod has other packages, or sends them to other pods now")
            with subprocess.Popen([*TAR, "--extract"], stdin=subprocess.PIPE) as tar:
                assert tar.stdin
                while block:
                    tar.stdin.write(block)
                    block = stream.recv(BLOCK)
            if tar.returncode:
                raise OSError("tar failed")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    try:
        fetch()
    except OSError as error:
        sys.exit(f"installing packages, because the scheduler's pod does not send them: {error}")
