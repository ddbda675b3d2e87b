#!/usr/bin/python3 -I
"""Mounts the shared directory with sshfs. Root and a group of users can do everything with every file.

    mount_data.py USER@HOST:FOLDER PATH -o gid=GROUP,...     with sshfs's options; GROUP is a number

The kernel allows only the owner of a file to change its mode and times. Therefore tar, rsync and git fail as anyone
else if the kernel checks permissions. sshfs checks none. So this program passes requests between the kernel and sshfs:

- It rejects requests of users who are not in the group.
- It shows every user as the owner of all files, and ignores changes of owners: all files are the remote user's.
- It keeps files readable and writable for the remote user, because otherwise nobody could use them.
- It ignores changes of a link's times: SFTP would change the file that the link names.

The requests are those of Linux' include/uapi/linux/fuse.h.
"""

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
import threading
import time

IN = struct.Struct("IIQQIII")  # length, opcode, unique number, node, user, group, process
IN_SIZE = 40
OUT = struct.Struct("IiQ")  # length, error, unique number
NUMBER, LONG = struct.Struct("I"), struct.Struct("Q")
TYPE, DIRECTORY, SYMBOLIC_LINK = 0o170000, 0o040000, 0o120000  # parts of a file's mode
ROOT = 1  # the node of the mount's root

LOOKUP, GETATTR, SETATTR, SYMLINK, MKNOD, MKDIR, LINK, CREATE, STATX = 1, 3, 4, 6, 8, 9, 13, 35, 52
# Requests about files that are already open, and of the kernel itself.
UNCHECKED = {
    2: "FORGET", 15: "READ", 16: "WRITE", 17: "STATFS", 18: "RELEASE", 20: "FSYNC", 25: "FLUSH", 26: "INIT",
    28: "READDIR", 29: "RELEASEDIR", 30: "FSYNCDIR", 36: "INTERRUPT", 38: "DESTROY", 41: "NOTIFY_REPLY",
    42: "BATCH_FORGET", 44: "READDIRPLUS", 46: "LSEEK",
}  # fmt: skip
FORGET, BATCH_FORGET = 2, 42
# Where a reply contains the file's owner; those with ENTRY also contain its node and its mode.
ENTRY, ATTRIBUTES = 124, 100
OWNER = dict.fromkeys((LOOKUP, SYMLINK, MKNOD, MKDIR, LINK, CREATE), ENTRY)
OWNER |= dict.fromkeys((GETATTR, SETATTR), ATTRIBUTES)
ENTRY_NODE, ENTRY_MODE = 16, 116
# Where a request contains a mode.
MODE = {SETATTR: 108, MKNOD: 40, MKDIR: 40, CREATE: 44}
SETS_MODE, SETS_OWNER = 1, 2 | 4  # flags of SETATTR, at the start of its arguments

FORGOTTEN = struct.Struct("QQ")  # of BATCH_FORGET: node, count

MESSAGE = 2**20 + 2**12  # bytes; the kernel's limit for one request
REMEMBERED = 10  # seconds for which a user is known to be in the group


class Relay:
    def __init__(self, device: int, sshfs: socket.socket, group: int) -> None:
        self.device, self.sshfs, self.group = device, sshfs, group
        self.members: dict[int, float] = {}
        self.waiting: dict[int, tuple[int, int]] = {}  # by unique number: where the reply has the owner, and who asked
        self.links: set[int] = set()  # nodes of symbolic links that the kernel knows
        self.ready = threading.Event()

    def requests(self) -> None:
        buffer = bytearray(MESSAGE)
        while True:
            try:
                size = os.readv(self.device, [buffer])
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):  # the request was interrupted
                    continue
                return  # unmounted
            _, opcode, unique, node, user, group, process = IN.unpack_from(buffer)
            allowed = self.may_enter(user, group, process)
            if opcode == STATX:  # the kernel then asks GETATTR
                self.reject(unique, errno.ENOSYS)
                continue
            if not allowed and opcode not in UNCHECKED and (opcode, node) != (GETATTR, ROOT):
                self.reject(unique, errno.EACCES)
                continue
            if opcode == SETATTR and node in self.links:
                NUMBER.pack_into(buffer, IN_SIZE, 0)
            elif opcode in MODE:
                correct(opcode, buffer)
            elif opcode == FORGET:
                self.links.discard(node)
            elif opcode == BATCH_FORGET:
                self.links.difference_update(forgotten for forgotten, _ in FORGOTTEN.iter_unpack(buffer[48:size]))
            if allowed and opcode in OWNER:
                self.waiting[unique] = OWNER[opcode], user
            self.sshfs.send(memoryview(buffer)[:size])

    def replies(self) -> None:
        buffer = bytearray(MESSAGE)
        while size := self.sshfs.recv_into(buffer):
            _, error, unique = OUT.unpack_from(buffer)
            place, user = self.waiting.pop(unique, (0, 0))
            if place and not error:
                NUMBER.pack_into(buffer, place, user)
            if place == ENTRY and not error:
                [node], [mode] = LONG.unpack_from(buffer, ENTRY_NODE), NUMBER.unpack_from(buffer, ENTRY_MODE)
                (self.links.add if mode & TYPE == SYMBOLIC_LINK else self.links.discard)(node)
            with contextlib.suppress(FileNotFoundError):  # the request was interrupted
                os.write(self.device, memoryview(buffer)[:size])
            self.ready.set()

    def reject(self, unique: int, error: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.write(self.device, OUT.pack(OUT.size, -error, unique))

    def may_enter(self, user: int, group: int, process: int) -> bool:
        if user == 0 or group == self.group or self.members.get(user, 0) > time.monotonic():
            return True
        with contextlib.suppress(OSError), open(f"/proc/{process}/status") as status:
            for line in status:
                if line.startswith("Groups:") and str(self.group) in line.split():
                    self.members[user] = time.monotonic() + REMEMBERED
                    return True
        return False


def correct(opcode: int, buffer: bytearray) -> None:
    if opcode == SETATTR:
        [flags] = NUMBER.unpack_from(buffer, IN_SIZE)
        NUMBER.pack_into(buffer, IN_SIZE, flags & ~SETS_OWNER)
        if not flags & SETS_MODE:
            return
    [mode] = NUMBER.unpack_from(buffer, MODE[opcode])
    directory = opcode == MKDIR or mode & TYPE == DIRECTORY
    NUMBER.pack_into(buffer, MODE[opcode], mode | (0o700 if directory else 0o600))


def serve(source: str, path: str, options: dict[str, str], mounted: int) -> int:
    device = os.open("/dev/fuse", os.O_RDWR)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, 32, 4 * MESSAGE)  # SO_SNDBUFFORCE
    # Files of a task must not become programs that run as the user who seems to own them.
    kernel = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,nosuid,nodev,max_read={options['max_read']}"
    # Debian 13's mount drops the second half of the type fuse.sshfs.
    mount = ["mount", "-i", "-t", "fuse", "-o", f"{kernel},subtype=sshfs", source, path]
    if status := subprocess.call(mount, pass_fds=[device], stdin=subprocess.DEVNULL):
        return status
    text = ",".join(f"{name}={value}" if value else name for name, value in options.items())
    command = ["sshfs", source, f"/dev/fd/{theirs.fileno()}", "-f", "-o", text]
    sshfs = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    relay = Relay(device, ours, int(options["gid"]))
    ended = threading.Event()

    def run(loop) -> None:
        try:
            with contextlib.suppress(OSError):  # the other end has gone
                loop()
        finally:
            ended.set()

    for loop in (relay.requests, relay.replies):
        threading.Thread(target=run, args=[loop], daemon=True).start()
    while not relay.ready.wait(0.01):
        if ended.is_set():
            subprocess.call(["umount", "-l", path])
            return 1
    os.write(mounted, b"\n")
    os.close(mounted)
    ended.wait()
    sshfs.terminate()
    return 0


def main() -> int:
    source, path, _, given = sys.argv[1:]
    options = {"max_read": "65536"}
    for each in given.split(","):
        name, _, value = each.partition("=")
        if name not in ("rw", "dev", "suid", "exec", "_netdev"):
            options[name] = value
    reading, mounted = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        os._exit(serve(source, path, options, mounted))
    os.close(mounted)
    return 0 if os.read(reading, 1) else 1


if __name__ == "__main__":
    sys.exit(main())
