"""Real machines for instances. DASKSTACK_REHEARSAL_MACHINES configures them.

It is a JSON object with `command`, to which an action and the IDs of instances are appended, and `cwd`. Without it, an
instance is only a record.
"""

import asyncio
import json
import os

from command.output import CommandError
from gcp.cloud import Record
from gcp.inputs import changes, not_done, stops
from gcp.kinds import VM
from gcp.run import run
from gcp.table import KINDS

DISK, ATTACHED = "compute/disk:Disk", "compute/attachedDisk:AttachedDisk"
FIREWALL = "compute/firewall:Firewall"


def real() -> bool:
    return bool(os.environ.get("DASKSTACK_REHEARSAL_MACHINES"))


async def compute(word: str, *identities: str, stdin: str = "") -> str:
    settings = json.loads(os.environ["DASKSTACK_REHEARSAL_MACHINES"])
    return (await run(*settings["command"], word, *identities, stdin=stdin, cwd=settings["cwd"])).strip()


async def create(identity: str, record: Record) -> None:
    """Create a machine from a record that is not written yet. A failure leaves nothing behind."""
    try:
        await compute("create", identity, stdin=json.dumps(record))
        if record["inputs"].get("desiredStatus") == "TERMINATED":
            await compute("stop", identity)
    except (CommandError, asyncio.CancelledError):
        await compute("delete", identity)
        raise


async def before_update(identity: str, old: Record, new: Record) -> str:
    """Stop the machine if the change requires it. Returns the desired status after the update."""
    now = await compute("status", identity)
    found = changes(KINDS[VM], old["inputs"], new["inputs"])[0]
    if now == "RUNNING" and any(path.startswith("attachedDisks") for path in found):
        raise CommandError(not_done("changing attachedDisks of a running machine (stop it first)"))
    wanted = new["inputs"].get("desiredStatus") or now
    if now == "RUNNING" and (wanted == "TERMINATED" or stops(VM, found)):
        if old["inputs"].get("scratchDisks"):  # the official plugin does not say what becomes of their data
            raise CommandError("VM has a Local SSD attached but an undefined value for `discard-local-ssd`")
        await compute("stop", identity)
    return wanted


async def after_update(identity: str, record: Record, wanted: str) -> None:
    await compute("start" if wanted == "RUNNING" else "rules", identity)
    record["outputs"]["currentStatus"] = wanted


async def observe(identity: str, record: Record) -> None:
    """Update the recorded status, so that a stopped machine shows up as a difference, as in the official plugin."""
    status = await compute("status", identity)
    outputs = record["outputs"]
    outputs |= dict.fromkeys({"currentStatus", "desiredStatus"} & outputs.keys(), status)


BUSY = asyncio.Lock()  # one change at a time, because the network's rules depend on all records
