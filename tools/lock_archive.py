"""Locks an archive of conda-pack or venv-pack, which contains a whole environment: python -m tools.lock_archive ARCHIVE

Writes ARCHIVE.lock. The path is relative to the project.
"""

import hashlib
import json
import re
import sys
import tarfile
from pathlib import Path

from packaging.utils import canonicalize_name

from daskstack.engine import PROJECT
from tools.running import InstallError, say

PACKAGE = re.compile(r"(?:\./)?lib/python(3\.\d+)/site-packages/([^/]+)-([^-/]+)\.dist-info/METADATA")


def lock_archive(archive: Path) -> Path:
    """The path of the lock that it writes. Raises InstallError if the archive is not an environment with Dask."""
    if not archive.is_file():
        raise InstallError(f"there is no {archive}; pack an environment with conda-pack or venv-pack")
    try:
        with tarfile.open(archive) as tar:
            found = [match for member in tar if (match := PACKAGE.fullmatch(member.name))]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InstallError(f"{archive.name} is not an archive of tar: {error}") from None
    packages: dict[str, str] = {canonicalize_name(match[2]): match[3] for match in found}
    if missing := [name for name in ("dask", "distributed") if name not in packages]:
        raise InstallError(f"{archive.name} does not contain {', '.join(missing)}; install them, and pack it again")
    with archive.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {"archive": archive.name, "sha256": sha256, "size": archive.stat().st_size, "python": found[0][1]}
    path = archive.with_name(f"{archive.name}.lock")
    path.write_text(json.dumps(facts | {"packages": dict(sorted(packages.items()))}, indent=1) + "\n")
    say(f"Wrote {path}: Python {found[0][1]}, dask {packages['dask']}, {len(packages)} packages")
    return path


if __name__ == "__main__":
    try:
        lock_archive(PROJECT / sys.argv[1])
    except InstallError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
