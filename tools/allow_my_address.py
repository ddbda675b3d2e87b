"""Offers to add the caller's address to the firewall of a stack: python -m tools.allow_my_address STACK

Runs before `up`. Applies only to machines in Google Cloud: their firewall rejects SSH from every address until the
stack lists some.
"""

import ipaddress
import sys
import urllib.request
from collections.abc import Mapping
from typing import Any

from daskstack import configuration, engine
from daskstack.configuration import KEY

ASK = "https://checkip.amazonaws.com"  # returns the address that the request came from


def address(url: str = ASK) -> str | None:
    """This computer's IPv4 address as the internet sees it; None if it cannot be determined."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(ipaddress.IPv4Address(answer.read(64).decode().strip()))
    except (OSError, ValueError):
        return None


def is_closed(settings: Mapping[str, Any]) -> bool:
    """Whether a stack has machines in Google Cloud that nobody can reach: no `iapPort`, no section `firewall`."""
    machines = settings.get("machines")
    if not isinstance(machines, dict):
        return False  # the program reports it
    return machines.get("source") == "compute" and not machines.get("iapPort") and "firewall" not in settings


def main(stack: str) -> None:
    if not sys.stdin.isatty() or not is_closed(configuration.read(stack)):
        return  # without a terminal nobody can answer; the program reports the missing section
    name = configuration.file(stack).name
    if not (own := address()):
        print(f"Could not determine your address: in {name}, list the networks that may reach SSH under firewall.ssh")
        return
    answer = input(f"{name} lets nobody reach the scheduler's machine. Allow your address {own}? [y/N] ")
    if answer.strip().lower() in ("y", "yes"):
        place = f"{KEY}.firewall.ssh[0]"
        if engine.pulumi(stack, "config", "set", "--path", "--plaintext", place, f"{own}/32").returncode:
            raise engine.EngineError(f"could not add the address to {name}; Pulumi's error is above")
        print(f"Added to {name}: firewall.ssh: [{own}/32]")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except engine.EngineError as error:
        sys.exit(f"error: {error}")
