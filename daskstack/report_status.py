"""Prints the status of a scheduler's workers as JSON: python report_status.py ADDRESS [--people]

Runs on the scheduler's machine (or in its pod) as the cluster's user. Dask unpickles a scheduler's
answers, which can run code from any submitted task. That must not happen on other computers, so only JSON leaves the
machine. With --people, it also prints who has connections; the scheduler needs the preload people.py for that.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

PERSON = "person:"


def main(address: str, *options: str) -> None:
    from distributed import Client

    with Client(address, timeout=20) as client:
        identity = client.sync(client.scheduler.identity, n_workers=-1)
        # Without TLS, nobody has a name.
        knows = "--people" in options and address.startswith("tls://")
        counts = client.sync(client.scheduler.people) if knows else {}
    print(json.dumps({"workers": workers(identity), "people": people(counts)}), flush=True)


def workers(identity: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The workers in a scheduler's description of itself."""
    return [
        {
            "name": str(worker["name"]),
            "status": worker["status"],
            "threads": worker["nthreads"],
            "used": worker["metrics"].get("memory", 0),
            "limit": worker["memory_limit"],
            "cpu": worker["metrics"].get("cpu", 0),
        }
        for worker in identity["workers"].values()
    ]


def people(counts: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """The people, the owner as `client`, and jobs. Other clients are programs on the cluster's machines."""
    shown = [name for name in counts if name == "client" or name.startswith((PERSON, "job "))]
    return [{"name": name.removeprefix(PERSON), **counts[name]} for name in shown]


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        sys.exit(f"the scheduler at {sys.argv[1]} does not answer: {error or type(error).__name__}")
