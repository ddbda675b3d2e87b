"""`command:remote:CopyToRemote`: copies a file or a directory to another machine by SFTP."""

import os
import posixpath
import stat
from typing import Any

import asyncssh

from command.connection import connect
from command.output import CommandError, Log


async def copy(inputs: dict[str, Any], log: Log) -> None:
    """Copy `source` to `remotePath` as the login user. Raises CommandError with the path that failed."""
    source, target = inputs["source"]["path"], inputs["remotePath"]
    async with connect(inputs["connection"], log) as ssh:
        try:
            async with ssh.start_sftp_client() as sftp:
                await _copy(sftp, source, target)
        except (OSError, asyncssh.Error) as error:
            raise CommandError(f"copying {source} to {inputs['connection']['host']}:{target}: {error}") from error


async def _copy(sftp: asyncssh.SFTPClient, source: str, target: str) -> None:
    """The destination depends on the type of the target, and on a trailing slash of the source:

    source | target is a directory  | is nothing              | is a file
    file   | target/file            | target                  | target
    dir    | target/dir             | target/dir              | error
    dir/   | target/(what is in it) | target/(what is in it)  | error
    """
    if not os.path.isdir(source):
        if await _is_directory(sftp, target):
            target = posixpath.join(target, os.path.basename(source))
        await sftp.put(source, target)
        return
    await _make_directory(sftp, target)
    target = posixpath.join(target, os.path.basename(source))  # the base name of `dir/` is empty
    await _make_directory(sftp, target)
    for folder, folders, files in os.walk(source):
        there = posixpath.normpath(posixpath.join(target, os.path.relpath(folder, source)))
        for name in sorted(folders):
            await _make_directory(sftp, posixpath.join(there, name))
        for name in sorted(files):
            await sftp.put(os.path.join(folder, name), posixpath.join(there, name))


async def _is_directory(sftp: asyncssh.SFTPClient, path: str) -> bool | None:
    """None if the path does not exist."""
    try:
        return stat.S_ISDIR((await sftp.stat(path)).permissions or 0)
    except asyncssh.SFTPNoSuchFile:
        return None


async def _make_directory(sftp: asyncssh.SFTPClient, path: str) -> None:
    there = await _is_directory(sftp, path)
    if there is None:
        await sftp.mkdir(path)
    elif not there:
        raise CommandError(f"remote path {path} exists but is not a directory")
