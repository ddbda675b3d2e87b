"""An SFTP server that serves a file unchanged the first time, and then the file of the same name in ~/evil.

It simulates whatever the cluster user could serve instead of the files. Each opened file adds a line to ~/served. Only
requests of sshfs are supported.
"""

import os
import stat
import struct
import sys
from pathlib import Path

HOME = Path.home()
INIT, OPEN, CLOSE, READ, LSTAT, FSTAT, OPENDIR, READDIR, REALPATH, STAT = 1, 3, 4, 5, 7, 8, 11, 12, 16, 17
VERSION, STATUS, HANDLE, DATA, NAME, ATTRS = 2, 101, 102, 103, 104, 105
OK, EOF, NO_SUCH_FILE, UNSUPPORTED = 0, 1, 2, 8


def text(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack(">I", len(value)) + value


def attributes(found: os.stat_result) -> bytes:
    numbers = (15, found.st_size, found.st_uid, found.st_gid, found.st_mode, int(found.st_atime), int(found.st_mtime))
    return struct.pack(">IQIIIII", *numbers)


def chosen(path: str) -> str:
    """The file to serve under this path this time."""
    log, evil = HOME / "served", HOME / "evil" / Path(path).name
    before = log.read_text().splitlines() if log.exists() else []
    path = str(evil) if f"open {Path(path).name}" in before and evil.exists() else path
    with log.open("a") as lines:
        lines.write(f"open {Path(path).name}\n" + (f"evil {evil.name}\n" if path == str(evil) else ""))
    return path


def answer(kind: int, body: bytes) -> tuple[int, bytes]:
    length = int.from_bytes(body[:4], "big")
    name, rest = body[4 : 4 + length].decode(errors="replace"), body[4 + length :]
    if kind == OPEN:
        return HANDLE, text(str(os.open(chosen(name), os.O_RDONLY)))
    if kind == READ:
        offset, size = struct.unpack(">QI", rest)
        data = os.pread(int(name), size, offset)
        return (DATA, text(data)) if data else status(EOF)
    if kind == FSTAT:
        return ATTRS, attributes(os.fstat(int(name)))
    if kind in (STAT, LSTAT):
        return ATTRS, attributes(os.lstat(name))
    if kind == OPENDIR:
        names = os.listdir(name)
        listings[f"d{len(listings)}"] = [(each, os.lstat(f"{name}/{each}")) for each in names]
        return HANDLE, text(f"d{len(listings) - 1}")
    if kind == READDIR:
        listed, listings[name] = listings[name], []
        entries = [text(each) + text(stat.filemode(found.st_mode)) + attributes(found) for each, found in listed]
        return (NAME, struct.pack(">I", len(listed)) + b"".join(entries)) if listed else status(EOF)
    if kind == REALPATH:
        return NAME, struct.pack(">I", 1) + text(os.path.realpath(name)) * 2 + struct.pack(">I", 0)
    if kind == CLOSE:
        if not name.startswith("d"):
            os.close(int(name))
        return status(OK)
    return status(UNSUPPORTED)


def status(code: int) -> tuple[int, bytes]:
    return STATUS, struct.pack(">I", code) + text("") + text("")


listings: dict[str, list[tuple[str, os.stat_result]]] = {}


def main() -> None:
    while len(head := sys.stdin.buffer.read(4)) == 4:
        packet = sys.stdin.buffer.read(int.from_bytes(head, "big"))
        if packet[0] == INIT:
            reply = bytes([VERSION]) + struct.pack(">I", 3)
        else:
            try:
                kind, body = answer(packet[0], packet[5:])
            except OSError:
                kind, body = status(NO_SUCH_FILE)
            reply = bytes([kind]) + packet[1:5] + body
        sys.stdout.buffer.write(text(reply))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
