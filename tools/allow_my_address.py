"""Before an `up`: offers to let the caller in where a stack names nobody: python -m tools.allow_my_address STACK

For machines in Google Cloud alone, whose door is closed until the stack says who may reach it.
"""

import ipaddress
import sys
import urllib.request
from collections.abc import Mapping
from typing import Any

from daskstack import configuration, engine
from daskstack.configuration import KEY

ASK = "https://checkip.amazonaws.com"  # answers with the address that the question came from


def address(url: str = ASK) -> str | None:
    """This computer's IPv4 address as the internet sees it, None where that cannot be known."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(ipaddress.IPv4Address(answer.read(64).decode().strip()))
    except (OSError, ValueError):
        return None


def is_closed(settings: Mapping[str, Any]) -> bool:
    """Whether a stack has machines in Google Cloud, lets nobody in, and has no section on the firewall."""
    machines = settings.get("machines")
    if not isinstance(machines, dict):
        return False  # the program reports it
    return machines.get("source") == "compute" and not machines.get("iapPort") and "firewall" not in settings


def main(stack: str) -> None:
    if not sys.stdin.isatty() or not is_closed(configuration.read(stack)):
        return  # if nobody can answer, the program reports what is missing
    name = configuration.file(stack).name
    if not (own := address()):
        print(f"Your own address cannot be looked up from here: write who may reach SSH into {name}, firewall.ssh")
        return
    answer = input(f"{name} lets nobody reach the scheduler's machine. Let in your own address {own}? [y/N] ")
    if answer.strip().lower() in ("y", "yes"):
        place = f"{KEY}.firewall.ssh[0]"
        if engine.pulumi(stack, "config", "set", "--path", "--plaintext", place, f"{own}/32").returncode:
            raise engine.EngineError(f"the address could not be written into {name}: Pulumi's reason is above")
        print(f"Written into {name}: firewall.ssh: [{own}/32]")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except engine.EngineError as error:
        sys.exit(f"error: {error}")
