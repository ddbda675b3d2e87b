"""A tunnel like Identity-Aware Proxy's: forwards a local port to a port of a machine.

Its connections have a source address in that proxy's range, and the network's firewall rules apply to them.
"""

import ctypes
import os
import socket
import sys
import threading

PROXY = "35.235.240.1"  # network.sh assigns this address to the network's namespace
CLONE_NEWNET = 0x40000000
PATIENCE = 10  # timeout in seconds for a connection


def forward(namespace: str, machine: tuple[str, int], local: tuple[str, int]) -> None:
    """Serve until the process ends."""
    if os.geteuid():
        kept = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("DASKSTACK_REHEARSAL")]
        os.execvp("sudo", ["sudo", "-n", "env", *kept, sys.executable, "-m", "rehearsal.compute", *sys.argv[1:]])
    with socket.create_server(local) as listener, open(f"/run/netns/{namespace}") as file:
        # The listener stays in this computer's namespace; sockets opened from now on are in the network's.
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")
        print(f"Listening on port [{listener.getsockname()[1]}].", file=sys.stderr, flush=True)
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0], machine), daemon=True).start()


def serve(client: socket.socket, machine: tuple[str, int]) -> None:
    with client:
        try:
            server = socket.create_connection(machine, PATIENCE, source_address=(PROXY, 0))
        except OSError as error:
            print(
                f"{machine[0]} port {machine[1]}: {error}; does a firewall rule allow 35.235.240.0/20?",
                file=sys.stderr,
            )
            return
        with server:
            server.settimeout(None)
            back = threading.Thread(target=copy, args=(server, client), daemon=True)
            back.start()
            copy(client, server)
            back.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    """Copy all data, and then the end of the stream."""
    try:
        while data := source.recv(2**16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:  # one side was lost, so close the other
        for each in (source, target):
            each.close()
