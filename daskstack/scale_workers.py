"""Sets the number of a cluster's workers, or revokes keys of people: python scale_workers.py ADDRESS HANDLER ARGUMENTS

HANDLER is one of the preloads elastic.py and people.py, ARGUMENTS are JSON. Prints the answer, or the error, as JSON.
Like report_status.py, it runs on the scheduler's machine, because Dask unpickles a scheduler's answers.
"""

import json
import sys

from distributed import Client


def main(address: str, handler: str, arguments: str) -> None:
    with Client(address, timeout=20) as client:
        try:
            answer = client.sync(getattr(client.scheduler, handler), **json.loads(arguments))
        except ValueError as error:
            answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        sys.exit(f"the scheduler at {sys.argv[1]} does not answer: {error or type(error).__name__}")
