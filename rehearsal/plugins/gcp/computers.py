"""A rehearsal's machines in the place of instances: DASKSTACK_REHEARSAL_MACHINES says how they run.

It is a JSON object with `command`, to which come a word and the ids of instances, and `cwd`. Without it an instance is
a record with nothing behind it.
"""

import asyncio
import json
import os

from command.output import CommandError
from gcp.cloud import Record
from gcp.inputs import changes, not_done, stops
from gcp.kinds import VM
from gcp.table import KINDS
from kube import run

DISK, ATTACHED = "compute/disk:Disk", "compute/attachedDisk:AttachedDisk"
FIREWALL = "compute/firewall:Firewall"


def real() -> bool:
    return bool(os.environ.get("DASKSTACK_REHEARSAL_MACHINES"))


async def compute(word: str, *identities: str, stdin: str = "") -> str:
    settings = json.loads(os.environ["DASKSTACK_REHEARSAL_MACHINES"])
    return (await run.run(*settings["command"], word, *identities, stdin=stdin, cwd=settings["cwd"]))[0].strip()


async def create(identity: str, record: Record) -> None:
    """A machine as the record says, which is not written yet; nothing is left of one that does not come."""
    try:
        await compute("create", identity, stdin=json.dumps(record))
        if record["inputs"].get("desiredStatus") == "TERMINATED":
            await compute("stop", identity)
    except (CommandError, asyncio.CancelledError):
        await compute("delete", identity)
        raise


async def before_update(identity: str, old: Record, new: Record) -> str:
    """Switch the machine off where the change asks for it. Returns the status that it is to have then."""
    now = await compute("status", identity)
    found = changes(KINDS[VM], old["inputs"], new["inputs"])[0]
    if now == "RUNNING" and any(path.startswith("attachedDisks") for path in found):
        raise CommandError(not_done("a change of a running machine's attachedDisks: switch it off for that"))
    wanted = new["inputs"].get("desiredStatus") or now
    if now == "RUNNING" and (wanted == "TERMINATED" or stops(VM, found)):
        await compute("stop", identity)
    return wanted


async def after_update(identity: str, record: Record, wanted: str) -> None:
    await compute("start" if wanted == "RUNNING" else "rules", identity)
    record["outputs"]["currentStatus"] = wanted


async def observe(identity: str, record: Record) -> None:
    """What the official plugin does as well: a machine that is off differs from one that is to run."""
    status = await compute("status", identity)
    outputs = record["outputs"]
    outputs |= dict.fromkeys({"currentStatus", "desiredStatus"} & outputs.keys(), status)


BUSY = asyncio.Lock()  # the network's rules are those of all that is written when they are made
