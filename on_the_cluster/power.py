"""Starts and stops the workers' machines in Google Cloud: a service on the scheduler's machine, which runs as root.

    power.py SETTINGS

SETTINGS is a file with JSON: `api` and `project` of Google's API; `machines`, each with its `instance`, a path in the
project, its `address`, and a `port` here or null; and `idle`, the seconds of `limits.idle`, or null.

elastic.py writes which machines the cluster needs. A machine that it does not need is stopped, and one that it needs is
started, also after Google has preempted it. Tasks can write to elastic.py's file. So it only decides between these two
for machines in SETTINGS, and anything else in it changes nothing.

`up` reaches a machine through its port on 127.0.0.1. A connection starts the machine and keeps it on. So `up` starts
only the machines on which it runs steps, and they stop again afterwards. Machines of groups are always needed; `up`
starts them itself and reaches them directly.
"""

import asyncio
import json
import logging
import os
import stat
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

INTERVAL = 5  # seconds between two looks at all machines
REQUESTS = 5  # at most, per second
KEEP = 60  # seconds for which a machine stays on after its last use, or after a step of `up` on this machine
WAIT = 300  # seconds for a machine to boot
AGAIN = 30  # seconds until a machine is started again, e.g. because Google had no capacity for it
CHANGE = 20  # seconds for which a machine that others stop stays off: `up` may want to change its type
NEW = 600  # seconds for which a machine stays on that others started: `up` may have created it
SIZE = 1 << 20  # bytes of a file that tasks can write
OFF = ("TERMINATED", "STOPPED")
SSH = 22

ETC = Path("/etc/daskstack")  # `members` and `bounds` exist once `up` has completed
HOME = Path("/var/lib/daskstack/home")  # of the cluster's user
STEPPED = Path("/run/daskstack-stepped")  # its modification time is the end of the last step on this machine
TOKEN = "http://169.254.169.254/computeMetadata/v1/instance/service-accounts/default/token"
logger = logging.getLogger("dask-power")


class Google:
    """Instances in Google Cloud, with the account of this machine."""

    def __init__(self, settings):
        self.place = f"{settings['api'].rstrip('/')}/projects/{settings['project']}"
        self.token, self.expires = "", 0

    def status(self, instance):
        return self.call(instance, "GET")["status"]

    def start(self, instance):
        self.call(f"{instance}/start", "POST")

    def stop(self, instance):
        # Workers spill to local SSDs, which are empty after every boot.
        self.call(f"{instance}/stop?discardLocalSsd=true", "POST")

    def call(self, what, method):
        if time.monotonic() > self.expires:
            answer = fetch(urllib.request.Request(TOKEN, headers={"Metadata-Flavor": "Google"}))
            self.token, self.expires = answer["access_token"], time.monotonic() + answer["expires_in"] - 60
        headers = {"Authorization": f"Bearer {self.token}"}
        data = b"" if method == "POST" else None
        return fetch(urllib.request.Request(f"{self.place}/{what}", data, headers, method=method))


def fetch(request):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise OSError(f"{request.full_url}: {error.code} {error.read(500).decode(errors='replace')}") from None


class Power:
    def __init__(self, settings, google, etc=ETC, home=HOME, stepped=STEPPED, clock=time.time, uptime=time.monotonic):
        self.machines, self.idle, self.google = settings["machines"], settings["idle"], google
        self.etc, self.home, self.stepped, self.clock, self.uptime = etc, home, stepped, clock, uptime
        self.locks = {name: asyncio.Lock() for name in self.machines}
        self.open = dict.fromkeys(self.machines, 0)  # connections
        self.used = dict.fromkeys(self.machines, clock())
        self.started, self.stopping = {}, {}  # when each was started, and when each was stopped until it is off
        self.seen = dict.fromkeys(self.machines, ("", 0.0))  # the last status, and since when
        self.said, self.servers = {}, []

    # Decisions

    def needed(self):
        """The machines that the running cluster needs, or None if that is unknown."""
        if not (self.etc / "members").exists() or not (self.etc / "bounds").exists():
            return None  # `up` has not completed yet
        try:
            return set(json.loads(read(self.home / "elastic.json"))["machines"].split()) & self.machines.keys()
        except (AttributeError, LookupError, OSError, TypeError, ValueError, RecursionError):
            return None

    def is_idle(self):
        """Whether the step `idle` powers off the whole cluster now."""
        last = max(modified(self.home / "worked"), modified(self.stepped))
        return self.idle is not None and min(self.clock() - last, self.uptime()) >= self.idle

    def must_run(self, name, needed):
        """True, False, or None if the machine stays as it is."""
        now = self.clock()
        if self.open[name]:
            return True
        if needed is None:
            return None
        if name in needed:
            self.used[name] = now
            return None if self.is_idle() else True
        return None if now - max(self.used[name], modified(self.stepped)) < KEEP else False

    # Machines

    async def watch(self):
        while True:
            await self.look()
            await asyncio.sleep(max(INTERVAL, len(self.machines) / REQUESTS))

    async def look(self):
        needed = self.needed()
        await asyncio.gather(*(self.settle(name, needed) for name in self.machines))

    async def settle(self, name, needed):
        """Starts or stops a machine if it must. Google's API may be out of reach, and the next call tries again."""
        async with self.locks[name]:
            if self.must_run(name, needed) is None:
                return
            try:
                instance = self.machines[name]["instance"]
                status = await call(self.google.status, instance)
                self.note(name, status)
                runs = self.must_run(name, needed)  # a connection may have come meanwhile
                if status in OFF:
                    self.stopping.pop(name, None)
                if status in OFF and runs and self.can_start(name):
                    # Google's answer to a start does not say whether it has capacity.
                    again = self.clock() - self.started.get(name, -WAIT) < WAIT
                    why = " again: Google had no capacity for it, or has preempted it" if again else ""
                    logger.info("Starting %s%s", instance, why)
                    self.started[name] = self.used[name] = self.clock()
                    await call(self.google.start, instance)
                elif status == "RUNNING" and runs is False and name not in self.stopping:
                    logger.info("Stopping %s", instance)
                    self.stopping[name] = self.clock()
                    self.started.pop(name, None)
                    await call(self.google.stop, instance)
                elif status == "RUNNING" and self.clock() - self.stopping.get(name, self.clock()) > WAIT:
                    del self.stopping[name]  # Google did not do it
                self.said.pop(name, None)
            except (OSError, ValueError, LookupError, TypeError) as error:
                self.stopping.pop(name, None)
                self.note(name, "unknown")
                if self.said.get(name) != str(error):
                    logger.warning("Cannot start or stop %s: %s", name, error)
                self.said[name] = str(error)

    def note(self, name, status):
        now, before = self.clock(), self.seen[name][0]
        if status != before:
            self.seen[name] = status, now if before and name not in self.stopping else 0.0
        if status == "RUNNING" and before not in ("", status) and now - self.started.get(name, -WAIT) >= WAIT:
            self.used[name] = now + NEW - KEEP

    def can_start(self, name):
        now = self.clock()
        return now - self.started.get(name, -AGAIN) >= AGAIN and now - self.seen[name][1] >= CHANGE

    # Connections

    async def serve(self):
        reached = {name: machine for name, machine in self.machines.items() if machine["port"] is not None}
        for name, machine in reached.items():
            self.servers.append(await asyncio.start_server(self.forwarder(name), "127.0.0.1", machine["port"]))

    def forwarder(self, name):
        async def forward(reader, writer):
            self.open[name] += 1
            try:
                there_reader, there = await self.reach(name)
                try:
                    await asyncio.gather(copy(reader, there), copy(there_reader, writer))
                finally:
                    there.close()
            except OSError as error:
                logger.warning("%s does not answer: %s", name, error)
            finally:
                self.open[name] -= 1
                self.used[name] = self.clock()
                writer.close()

        return forward

    async def reach(self, name):
        """Connects to the machine's sshd. It does not wait for Google's API while the machine answers."""
        address, deadline = self.machines[name]["address"], self.clock() + WAIT
        while True:
            try:
                if name in self.stopping:
                    raise OSError("it is stopping")
                return await asyncio.wait_for(asyncio.open_connection(address, SSH), 3)
            except (OSError, asyncio.TimeoutError) as error:  # noqa: UP041 - it is no OSError before Python 3.11
                if self.clock() > deadline:
                    raise OSError(f"nothing answered at {address} within {WAIT} s ({error})") from None
            await self.settle(name, self.needed())
            await asyncio.sleep(1)


async def call(function, instance):
    return await asyncio.get_running_loop().run_in_executor(None, function, instance)


async def copy(reader, writer):
    """Copies all data, and then the end of the stream."""
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:  # one side was lost, so close the other
        writer.close()


def read(file):
    """A file that tasks can replace by a link, a pipe or endless data."""
    with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise OSError(f"{file} is not a file")
        return opened.read(SIZE)


def modified(file):
    try:
        return os.lstat(file).st_mtime
    except OSError:
        return 0


async def main(file):
    settings = json.loads(Path(file).read_text())
    power = Power(settings, Google(settings))
    await power.serve()
    await power.watch()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(main(sys.argv[1]))
