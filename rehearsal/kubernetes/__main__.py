"""python -m rehearsal.kubernetes up|down DIRECTORY

`up` starts a single-node Kubernetes with its files in DIRECTORY, unless it already runs, and prints a JSON object:
`kubeconfig` (path), `context`, `node` (address). `down` removes it and DIRECTORY. Both need root, or sudo without a
password; `python3 -m tools.install kubernetes` installs what they need.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from rehearsal.kubernetes import NodeError, node
from rehearsal.kubernetes.images import INSTALLED
from rehearsal.kubernetes.supervisor import boot
from tools.running import InstallError


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m rehearsal.kubernetes", description=__doc__.split("\n\n")[1])
    parser.add_argument("word", choices=["up", "down", "boot"], metavar="{up,down}")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--python", default="3.11", help="minor version of the image python:X.Y-slim (%(default)s)")
    parser.add_argument("--lock", type=Path, action="append", default=[], help="its wheels are also for pods")
    parser.add_argument("--seconds", type=float, default=180, help="timeout for the start (%(default)s)")
    parser.add_argument("--small", action="store_true", help="ignore the resource requests of pods")
    parser.add_argument("--installed", action="store_true", help=f"add an image {INSTALLED} with a release's packages")
    options = parser.parse_args(arguments)
    directory = options.directory.resolve()
    # nft and ip may be in folders that the user's PATH does not contain.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    if options.word == "up":  # before becoming root, so that the user owns it
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    become_root(arguments)
    match options.word:
        case "up":
            locks = [each.resolve() for each in options.lock]
            settings = {"python": options.python, "locks": locks, "seconds": options.seconds, "small": options.small}
            print(json.dumps(node.up(directory, **settings, installed=options.installed)))
        case "down":
            node.down(directory)
        case "boot":
            boot(directory)


def become_root(arguments: list[str]) -> None:
    if sys.platform != "linux":
        raise NodeError(f"this computer runs {sys.platform}, but a local Kubernetes needs Linux")
    if os.geteuid():
        kept = [f"{name}={os.environ[name]}" for name in ("HOME", "PATH", "XDG_CACHE_HOME") if name in os.environ]
        command = ["sudo", "-n", "env", *kept, sys.executable, "-m", "rehearsal.kubernetes", *arguments]
        os.execvp("sudo", command)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (NodeError, InstallError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
