"""Hands a session of the tunnels' user to root's program jobs.py, which answers it: sshd runs nothing else for it.

The session's own command is the request. sshd writes the certificate of the login into the file SSH_USER_AUTH.
"""

import json
import os
import select
import socket
import sys

SOCKET = "/run/dask-jobs.sock"


def main():
    with open(os.environ["SSH_USER_AUTH"]) as file:
        login = file.read()
    request = {"login": login, "words": os.environ.get("SSH_ORIGINAL_COMMAND", "").split()}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        try:
            door.connect(SOCKET)
        except OSError as error:
            sys.exit(f"this machine cannot run jobs ({error.strerror}): the stack's owner has to run `make up`")
        socket.send_fds(door, [json.dumps(request).encode()], [0, 1, 2])
        poll = select.poll()
        poll.register(door, select.POLLIN)
        poll.register(1, 0)  # it reports that the client has gone
        if door.fileno() in dict(poll.poll()):
            sys.exit((door.recv(1) or b"\1")[0])


if __name__ == "__main__":
    main()
