"""Checks, before `destroy` deletes anything, that the kubeconfig still leads to the stack's cluster.

Variables: CLUSTER (JSON, as daskstack.kubectl takes it).
"""

import json
import os
import sys

from daskstack.kubectl import kubectl
from daskstack.tunnel import TunnelError


def main() -> None:
    try:
        with kubectl(json.loads(os.environ["CLUSTER"])):
            pass
    except TunnelError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
