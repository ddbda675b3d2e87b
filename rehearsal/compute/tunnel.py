"""A tunnel of Identity-Aware Proxy: a port of this computer's loopback that leads to one of a machine.

Its connections come from an address of that proxy's range, and the network's rules hold for them.
"""

import ctypes
import os
import socket
import sys
import threading

PROXY = "35.235.240.1"  # which the network's namespace has, see network.sh
CLONE_NEWNET = 0x40000000
PATIENCE = 10  # seconds for a connection to be made


def forward(namespace: str, machine: tuple[str, int], local: tuple[str, int]) -> None:
    """Serve until the process ends."""
    if os.geteuid():
        kept = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("DASKSTACK_REHEARSAL")]
        os.execvp("sudo", ["sudo", "-n", "env", *kept, sys.executable, "-m", "rehearsal.compute", *sys.argv[1:]])
    with socket.create_server(local) as listener, open(f"/run/netns/{namespace}") as file:
        # The listener stays in this computer's namespace; what is opened from now on is in the other.
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"no way into the network {namespace}")
        print(f"Listening on port [{listener.getsockname()[1]}].", file=sys.stderr, flush=True)
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0], machine), daemon=True).start()


def serve(client: socket.socket, machine: tuple[str, int]) -> None:
    with client:
        try:
            server = socket.create_connection(machine, PATIENCE, source_address=(PROXY, 0))
        except OSError as error:
            print(
                f"{machine[0]} port {machine[1]}: {error}; does a firewall rule let 35.235.240.0/20 in?",
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
    """All that comes, and its end."""
    try:
        while data := source.recv(2**16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:  # one side has gone: so shall the other
        for each in (source, target):
            each.close()
