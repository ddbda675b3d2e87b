"""Prints the status of a scheduler's workers as JSON: python report_status.py ADDRESS

Runs on the scheduler's machine (or in its pod) as the cluster's user. Dask unpickles a scheduler's
answers, which can run code from any submitted task. That must not happen on other computers, so only JSON leaves the
machine.
"""

import json
import sys

from distributed import Client


def main(address: str) -> None:
    with Client(address, timeout=20) as client:
        workers = client.sync(client.scheduler.identity, n_workers=-1)["workers"].values()
    report = [
        {
            "name": str(worker["name"]),
            "status": worker["status"],
            "threads": worker["nthreads"],
            "used": worker["metrics"].get("memory", 0),
            "limit": worker["memory_limit"],
            "cpu": worker["metrics"].get("cpu", 0),
        }
        for worker in workers
    ]
    print(json.dumps({"workers": report}), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except OSError as error:
        sys.exit(f"the scheduler at {sys.argv[1]} does not answer: {error or type(error).__name__}")
