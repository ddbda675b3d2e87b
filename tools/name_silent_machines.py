"""Names the existing machines of a stack that accept no connection: python3 -m tools.name_silent_machines STACK

`up` and `destroy` of such a stack run it after a failure. It leaves out machines behind a bastion.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from pydantic import ValidationError

from daskstack import configuration
from daskstack.tunnel import opens
from settings import ExistingSource


def main(stack: str) -> None:
    machines = ExistingSource.model_validate(configuration.read(stack)["machines"])
    asked = [host for host in machines.hosts if not host.gone and not host.bastion]
    with ThreadPoolExecutor(32) as pool:
        answers = pool.map(lambda host: opens(host.port, host.address), asked)
        silent = [host.name for host, answered in zip(asked, answers, strict=True) if not answered]
    if silent:
        print(
            f"No connection to {', '.join(silent)}. If a machine will never answer again, set `gone: true` for it in"
            f" {configuration.file(stack).name} and run `up`, which then skips it. Afterwards `destroy` skips it, too.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    with suppress(ValidationError):  # `up` has reported wrong settings
        main(*sys.argv[1:])
