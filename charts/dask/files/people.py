"""Knows whose connections a scheduler has: a preload of the scheduler, with TLS only.

The names are those of the certificates: person:NAME for a person with an access file, `client` for the stack's owner,
or a machine's name. The handler `people` counts the connections and tasks of each; a job has a name of its own, such as
"job 3". If a person's certificate is revoked, their open connections close, and new ones end before the scheduler sends
anything. On machines, the revocation list is in the file with the authority's certificate. In Kubernetes, each file in
REVOKED has a revoked serial number as its name; because Kubernetes updates them late, the handler `people_revoke` takes
serial numbers, too.

/json/status.json on the dashboard shows these counts and the workers. (Dask's own identity.json often fails.)
"""

import json
import logging
import re
import subprocess
from pathlib import Path

from distributed.comm.core import CommClosedError
from tornado.ioloop import PeriodicCallback
from tornado.web import RequestHandler

PERSON = "person:"
REVOKED = Path("/etc/dask-revoked")
INTERVAL = 2  # seconds
COUNTED = 100_000  # tasks of one name; the scheduler does nothing else meanwhile
logger = logging.getLogger("distributed.people")


class People:
    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.file = Path(scheduler.security.get_tls_config_for_role("scheduler")["ca_file"])
        self.seen, self.listed, self.told = None, set(), set()
        self.callback = PeriodicCallback(self.close_revoked, INTERVAL * 1000)

    def close_revoked(self):
        """Closes them again and again, because one may open before the scheduler uses a new list."""
        try:
            now = self.file.stat().st_mtime_ns
            if now != self.seen:
                self.listed = revoked(self.file.read_text())
                self.seen = now
        except (OSError, subprocess.SubprocessError) as error:
            logger.warning("the revocation list cannot be read yet: %s", error)
        if REVOKED.is_dir():
            self.told.update(serial for each in REVOKED.iterdir() if (serial := number(each.name)))
        closed = 0
        for comm in list(self.scheduler._comms):
            if self.is_revoked(comm):
                comm.abort()
                closed += 1
        return closed

    def is_revoked(self, comm):
        name, serial = holder(comm)
        # Others keep connections until they end: a renewal revokes the former certificates of all machines.
        found = name.startswith(PERSON) and (serial in self.listed or serial in self.told)
        if found:
            logger.info("closing a connection of %s, whose certificate is revoked", name)
        return found

    def revoke(self, serials):
        """Closes the connections of these certificates, hexadecimal serial numbers; returns how many."""
        self.told.update(number(each) for each in serials)
        return {"ended": self.close_revoked()}

    def guard(self, listener):
        accept = listener.on_connection

        async def on_connection(comm, *args, **kwargs):
            if self.is_revoked(comm):
                comm.abort()
                raise CommClosedError("the certificate is revoked")
            return await accept(comm, *args, **kwargs)

        listener.on_connection = on_connection

    def count(self):
        """The number of connections, and of unfinished tasks, of each name. A task can be in several counts."""
        found, wanted = {}, {}
        for client, batches in self.scheduler.client_comms.items():
            if batches.comm is not None and client in self.scheduler.clients:
                name, _ = holder(batches.comm)
                job = re.search(r"-daskstack-job-(\d+)-", client)
                if job and not name.startswith(PERSON):
                    name = f"job {job[1]}"
                found.setdefault(name, {"connections": 0})["connections"] += 1
                wanted.setdefault(name, []).extend(self.scheduler.clients[client].wants_what)
        for name, tasks in wanted.items():
            found[name].update(unfinished(tasks))
        return found

    def status(self):
        """What daskstack/report_status.py reads, as JSON."""
        workers = {}
        for address, each in self.scheduler.identity()["workers"].items():
            workers[address] = {key: each[key] for key in ("name", "status", "nthreads", "memory_limit")}
            workers[address]["metrics"] = {key: each["metrics"].get(key, 0) for key in ("memory", "cpu")}
        return json.dumps({"workers": workers, "people": self.count()}, default=str)


def page(people):
    class Status(RequestHandler):
        def get(self):
            self.set_header("Content-Type", "application/json")
            self.write(people.status())

    return Status


def unfinished(tasks):
    """How many of the tasks, and of those that they wait for, run or wait."""
    left, seen, counts = list(tasks), set(), {"running": 0, "waiting": 0}
    while left and len(seen) < COUNTED:
        task = left.pop()
        if task not in seen and task.state in ("processing", "waiting", "queued", "no-worker"):
            seen.add(task)
            counts["running" if task.state == "processing" else "waiting"] += 1
            left.extend(task.waiting_on or ())
    return counts


def holder(comm):
    """The common name and the serial number of the certificate at the other end; ("", 0) without one."""
    certificate = comm.extra_info.get("peercert") or {}
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return (names[0] if names else ""), int(certificate.get("serialNumber", "0"), 16)


def number(text):
    """A hexadecimal number; 0 for other names of files."""
    return int(text, 16) if re.fullmatch("[0-9a-f]+", text) else 0


def revoked(text):
    """The serial numbers in all revocation lists of a PEM file."""
    found = set()
    for crl in re.findall(r"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----\n?", text, re.DOTALL):
        command = ["openssl", "crl", "-noout", "-text"]
        shown = subprocess.run(command, input=crl, stdout=subprocess.PIPE, text=True, check=True, timeout=10).stdout
        found |= {int(serial, 16) for serial in re.findall(r"^\s*Serial Number: ([0-9A-F]+)$", shown, re.MULTILINE)}
    return found


def dask_setup(scheduler):
    if not scheduler.security.require_encryption:
        return
    scheduler.people = People(scheduler)
    scheduler.handlers.update(people=scheduler.people.count, people_revoke=scheduler.people.revoke)
    scheduler.people.close_revoked()
    for listener in scheduler.listeners:
        scheduler.people.guard(listener)
    scheduler.http_application.add_handlers(".*$", [(r"/json/status\.json", page(scheduler.people))])
    scheduler.people.callback.start()
