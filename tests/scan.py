"""Prints the open TCP ports of an address as JSON: scan.py FROM TO (addresses; root only).

Sends a SYN to each port and reads the SYN-ACKs, because a connection attempt to a port that drops packets times out.
"""

import json
import socket
import struct
import sys
import time

PORT = 40_000  # source port; nothing listens there, so the kernel resets each connection
QUIET = 3  # seconds to wait for answers


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def main(source: str, target: str) -> None:
    addresses = socket.inet_aton(source) + socket.inet_aton(target)

    def syn(port: int) -> bytes:
        def header(check: int) -> bytes:
            return struct.pack("!HHIIBBHHH", PORT, port, 1, 0, 5 << 4, 0x02, 65535, check, 0)

        return header(checksum(addresses + struct.pack("!HH", socket.IPPROTO_TCP, 20) + header(0)))

    found: set[int] = set()
    last = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as wire:
        wire.bind((source, 0))
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)

        def read() -> None:
            nonlocal last
            try:
                while packet := wire.recv(200):
                    here = (packet[0] & 15) * 4
                    port, to, flags = (*struct.unpack("!HH", packet[here : here + 4]), packet[here + 13])
                    if packet[12:16] == addresses[4:] and to == PORT and flags & 0x12 == 0x12:
                        found.add(port)
                        last = time.monotonic()
            except BlockingIOError:
                pass

        wire.setblocking(False)
        for _ in range(2):  # a packet can be lost
            for port in range(1, 65536):
                while True:
                    try:
                        wire.sendto(syn(port), (target, 0))
                        break
                    except BlockingIOError:
                        time.sleep(0.001)
                if port % 64 == 0:
                    time.sleep(0.001)  # queues on the path are short
                    read()
            last = time.monotonic()
            while time.monotonic() - last < QUIET:
                read()
                time.sleep(0.05)
    print(json.dumps(sorted(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
