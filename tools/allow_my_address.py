"""Before an `up`: offers to let the caller in where a stack names nobody: python -m tools.allow_my_address STACK

For machines in Google Cloud alone, whose door is closed until the stack says who may reach it.
"""

import ipaddress
import sys
import urllib.request
from pathlib import Path

import yaml

from daskstack.engine import PROJECT
from settings.common import KEY

ASK = "https://checkip.amazonaws.com"  # answers with the address that the question came from


def address(url: str = ASK) -> str | None:
    """This computer's IPv4 address as the internet sees it, None where that cannot be known."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(ipaddress.IPv4Address(answer.read(64).decode().strip()))
    except (OSError, ValueError):
        return None


def is_closed(text: str) -> bool:
    """Whether a stack file has machines in Google Cloud and lets nobody in, and says nothing of a firewall."""
    try:
        cluster = ((yaml.safe_load(text) or {}).get("config") or {}).get(KEY) or {}
    except (yaml.YAMLError, AttributeError):
        return False  # the engine says what is wrong with it
    machines = cluster.get("machines") if isinstance(cluster, dict) else None
    if not isinstance(machines, dict):
        return False
    return machines.get("source") == "compute" and not machines.get("iapPort") and "firewall" not in cluster


def opened(text: str, source: str) -> str:
    """The stack file with a firewall that lets `source` in, all else as it was."""
    lines = text.splitlines(keepends=True)
    [at] = [number for number, line in enumerate(lines) if line.split() == ["target:", "machines"]]
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    return "".join([*lines[: at + 1], f"{indent}firewall:\n{indent}  ssh: [{source}/32]\n", *lines[at + 1 :]])


def main(stack: str) -> None:
    file = PROJECT / f"Pulumi.{Path(stack).name}.yaml"
    text = file.read_text()
    if not is_closed(text) or not sys.stdin.isatty():
        return  # without anybody to answer, the program says what is missing
    if not (own := address()):
        print(f"Your own address cannot be looked up from here: write who may reach SSH into {file.name}, firewall.ssh")
        return
    answer = input(f"{file.name} lets nobody reach the scheduler's machine. Let in your own address {own}? [y/N] ")
    if answer.strip().lower() in ("y", "yes"):
        file.write_text(opened(text, own))
        print(f"Written into {file.name}: firewall.ssh: [{own}/32]")


if __name__ == "__main__":
    main(*sys.argv[1:])
