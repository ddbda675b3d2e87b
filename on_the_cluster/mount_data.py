#!/usr/bin/python3 -I
"""Mounts the shared directory with sshfs. Root and a group of users can do everything with every file.

    mount_data.py USER@HOST:FOLDER PATH -o gid=GROUP,...     with sshfs's options; GROUP is a number

The kernel allows only the owner of a file to change its mode and times. Therefore tar, rsync and git fail as anyone
else if the kernel checks permissions. sshfs checks none. So this program passes requests between the kernel and sshfs:

- It rejects requests of users who are not in the group.
- It shows every user as the owner of all files, and ignores changes of owners: all files are the remote user's.
- It keeps files readable and writable for the remote user, because otherwise nobody could use them.
- It ignores changes of a link's times: SFTP would change the file that the link names.
- It remembers files' attributes for a second. The kernel asks for them before each read, and must not remember them
  itself, because it would show one user's answer to all. Every look-up of a path asks again, so that an opened file has
  its full length, and every change on this machine clears the memory.
- It lets the kernel remember for a second that a name is a directory, but not its contents and attributes.
- It makes the kernel read further ahead, and programs use larger buffers, because each request takes long.

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
from pathlib import Path

IN = struct.Struct("IIQQIII")  # length, opcode, unique number, node, user, group, process
IN_SIZE = 40
OUT = struct.Struct("IiQ")  # length, error, unique number
NUMBER, LONG = struct.Struct("I"), struct.Struct("Q")
TYPE, DIRECTORY, FILE, SYMBOLIC_LINK = 0o170000, 0o040000, 0o100000, 0o120000  # parts of a file's mode
SIZE = 88  # of a file's attributes
WRITES = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
ROOT = 1  # the node of the mount's root

LOOKUP, GETATTR, SETATTR, SYMLINK, MKNOD, MKDIR, LINK, CREATE, STATX = 1, 3, 4, 6, 8, 9, 13, 35, 52
READLINK, OPEN, WRITE, GETXATTR, OPENDIR, ACCESS = 5, 14, 16, 22, 27, 34
# Requests about files that are already open, and of the kernel itself.
UNCHECKED = {
    2: "FORGET", 15: "READ", 16: "WRITE", 17: "STATFS", 18: "RELEASE", 20: "FSYNC", 25: "FLUSH", 26: "INIT",
    28: "READDIR", 29: "RELEASEDIR", 30: "FSYNCDIR", 36: "INTERRUPT", 38: "DESTROY", 41: "NOTIFY_REPLY",
    42: "BATCH_FORGET", 44: "READDIRPLUS", 46: "LSEEK",
}  # fmt: skip
FORGET, BATCH_FORGET = 2, 42
# They change neither files nor attributes; neither does OPEN without WRITES.
HARMLESS = {LOOKUP, GETATTR, READLINK, GETXATTR, OPENDIR, ACCESS, *UNCHECKED} - {WRITE}
# Where a reply contains the file's owner; those with ENTRY also contain its node and its mode.
ENTRY, ATTRIBUTES = 124, 100
OWNER = dict.fromkeys((LOOKUP, SYMLINK, MKNOD, MKDIR, LINK, CREATE), ENTRY)
OWNER |= dict.fromkeys((GETATTR, SETATTR), ATTRIBUTES)
ENTRY_NODE, ENTRY_VALID, ENTRY_ATTRIBUTES, ENTRY_MODE = 16, 32, 56, 116
ATTRIBUTES_MODE = 92
TO_BLOCK = 12  # bytes from the owner to the block size
ATTRIBUTES_START = 32  # of the reply to GETATTR; before them is how long the kernel may remember them, which is 0
# Where a request contains a mode.
MODE = {SETATTR: 108, MKNOD: 40, MKDIR: 40, CREATE: 44}
SETS_MODE, SETS_OWNER = 1, 2 | 4  # flags of SETATTR, at the start of its arguments

FORGOTTEN = struct.Struct("QQ")  # of BATCH_FORGET: node, count

MESSAGE = 2**20 + 2**12  # bytes; the kernel's limit for one request
REMEMBERED = 10  # seconds for which a user is known to be in the group
FRESH = 1  # seconds for which attributes and directories' names are remembered
FILES = 10_000  # whose attributes are remembered
READ_AHEAD = 1024  # KiB that the kernel requests in advance; its default is 128
BLOCK = 65536  # bytes that buffered programs, such as Python's, read and write at once; sshfs says 4096


class Relay:
    def __init__(self, device: int, sshfs: socket.socket, group: int) -> None:
        self.device, self.sshfs, self.group = device, sshfs, group
        self.members: dict[int, float] = {}
        # By unique number: where the reply has the owner, who asked, for which node, when, and after how many changes.
        self.waiting: dict[int, tuple[int, int, int, float, int]] = {}
        self.changes = 0  # requests that change something, and their replies
        self.changing: set[int] = set()  # their unique numbers
        self.attributes: dict[int, tuple[float, int, bytes]] = {}  # by node: asked when, after how many changes, which
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
                self.forget(node)
            elif opcode == BATCH_FORGET:
                for forgotten, _ in FORGOTTEN.iter_unpack(buffer[48:size]):
                    self.forget(forgotten)
            elif opcode == GETATTR and self.answer_from_memory(unique, node, user):
                continue
            if opcode not in HARMLESS and (opcode != OPEN or NUMBER.unpack_from(buffer, IN_SIZE)[0] & WRITES):
                self.changing.add(unique)
                self.change()
            if allowed and opcode in OWNER:
                self.waiting[unique] = OWNER[opcode], user, node, time.monotonic(), self.changes
            self.sshfs.send(memoryview(buffer)[:size])

    def replies(self) -> None:
        buffer = bytearray(MESSAGE)
        while size := self.sshfs.recv_into(buffer):
            _, error, unique = OUT.unpack_from(buffer)
            place, user, node, asked, changes = self.waiting.pop(unique, (0, 0, 0, 0, 0))
            if unique in self.changing:
                self.changing.discard(unique)
                self.change()
                changes += 1  # its own reply does not make its attributes old
            if place and not error:
                NUMBER.pack_into(buffer, place, user)
                NUMBER.pack_into(buffer, place + TO_BLOCK, BLOCK)
                start, mode_place = ATTRIBUTES_START, ATTRIBUTES_MODE
                if place == ENTRY:
                    [node], start, mode_place = LONG.unpack_from(buffer, ENTRY_NODE), ENTRY_ATTRIBUTES, ENTRY_MODE
                [mode] = NUMBER.unpack_from(buffer, mode_place)
                if place == ENTRY:
                    (self.links.add if mode & TYPE == SYMBOLIC_LINK else self.links.discard)(node)
                    if mode & TYPE == DIRECTORY:
                        LONG.pack_into(buffer, ENTRY_VALID, FRESH)
                if mode & TYPE == FILE:
                    self.remember(node, asked, changes, bytes(buffer[start : start + SIZE]))
            with contextlib.suppress(FileNotFoundError):  # the request was interrupted
                os.write(self.device, memoryview(buffer)[:size])
            self.ready.set()

    def change(self) -> None:
        self.changes += 1
        self.attributes.clear()

    def forget(self, node: int) -> None:
        self.links.discard(node)
        self.attributes.pop(node, None)

    def remember(self, node: int, asked: float, changes: int, attributes: bytes) -> None:
        # sshfs can answer an old request after a newer one.
        if self.attributes.get(node, (0,))[0] > asked:
            return
        if len(self.attributes) >= FILES:
            self.attributes.clear()
        self.attributes[node] = asked, changes, attributes

    def answer_from_memory(self, unique: int, node: int, user: int) -> bool:
        asked, changes, attributes = self.attributes.get(node, (0, 0, b""))
        if not attributes or changes != self.changes or asked + FRESH < time.monotonic():
            return False
        reply = bytearray(OUT.pack(ATTRIBUTES_START + SIZE, 0, unique) + bytes(16) + attributes)
        NUMBER.pack_into(reply, ATTRIBUTES, user)
        with contextlib.suppress(FileNotFoundError):  # the request was interrupted
            os.write(self.device, reply)
        return True

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
    # sshfs splits the kernel's requests into its own, of which it sends several at once.
    kernel = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,nosuid,nodev,max_read={2**20}"
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
    set_read_ahead(path)
    os.write(mounted, b"\n")
    os.close(mounted)
    ended.wait()
    sshfs.terminate()
    return 0


def set_read_ahead(path: str) -> None:
    """Only works once sshfs has answered the kernel's first request, which sets it, too."""
    with open("/proc/self/mountinfo") as mounts:
        devices = [fields[2] for fields in map(str.split, mounts) if fields[4] == path]
    with contextlib.suppress(OSError):  # some containers have a read-only /sys
        for device in devices[-1:]:  # before it, there is the automount; below a link, the path is another
            Path("/sys/class/bdi", device, "read_ahead_kb").write_text(str(READ_AHEAD))


def main() -> int:
    source, path, _, given = sys.argv[1:]
    options = {"max_read": "65536", "max_write": "65536"}
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
