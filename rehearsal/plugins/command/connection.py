"""SSH connections for the argument `connection`. Each operation opens its own."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncssh

from command.output import CommandError, Log

# If the peer disappears, a command fails after about a minute. Without this, it would hang forever.
KEEPALIVE = {"keepalive_interval": 15, "keepalive_count_max": 3}


class WrongHostKey(CommandError):
    """The server's host key differs from the pinned one."""


@contextlib.asynccontextmanager
async def connect(settings: dict[str, Any], log: Log) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """Connect, through `proxy` if there is one. Raises CommandError with the last error."""
    async with contextlib.AsyncExitStack() as stack:
        bastion = None
        if proxy := settings.get("proxy"):
            bastion = await _dial("Dial proxy", proxy, None, stack, log)
        yield await _dial("Dial", settings, bastion, stack, log)


async def _dial(
    what: str,
    settings: dict[str, Any],
    bastion: asyncssh.SSHClientConnection | None,
    stack: contextlib.AsyncExitStack,
    log: Log,
) -> asyncssh.SSHClientConnection:
    user, host, port = settings.get("user", "root"), settings["host"], int(settings.get("port", 22))
    pinned = _host_key(settings["hostKey"]) if settings.get("hostKey") else None
    options = await _authentication(settings, stack) | _verification(pinned) | KEEPALIVE

    async def attempt() -> asyncssh.SSHClientConnection:
        keys_seen: list[asyncssh.SSHKey] = []
        try:
            return await asyncssh.connect(
                host,
                port,
                username=user,
                tunnel=bastion,
                config=None,
                # The fastest secure cipher on CPUs with AES instructions, which the official plugin also prefers.
                encryption_algs="^aes128-gcm@openssh.com",
                client_factory=lambda: _Client(pinned, keys_seen),
                **options,
            )
        except (asyncssh.ConnectionLost, ConnectionResetError) as error:
            if not pinned:
                raise
            kind = pinned.get_algorithm()
            raise asyncssh.ConnectionLost(
                f"{error}; does the server have a host key of the pinned type {kind}?"
            ) from error
        except asyncssh.HostKeyNotVerifiable as error:
            if not (pinned and keys_seen):
                raise
            raise WrongHostKey(
                f"the host key of {host}:{port} differs from connection.hostKey: expected "
                f"{pinned.get_fingerprint()}, found {keys_seen[0].get_fingerprint()}; if the machine was replaced, "
                "set its new host key; otherwise someone may be intercepting the connection"
            ) from error

    ssh = await _retry(f"{what} {user}@{host}:{port}", settings, attempt, log)
    return await stack.enter_async_context(ssh)


async def _retry(
    what: str,
    settings: dict[str, Any],
    attempt: Callable[[], Awaitable[asyncssh.SSHClientConnection]],
    log: Log,
) -> asyncssh.SSHClientConnection:
    """Retry until it works, or until `dialErrorLimit` + 1 attempts have failed.

    Failed logins are retried, too, because a new machine may answer before its users and keys exist. A wrong host key
    is final.
    """
    limit = int(settings.get("dialErrorLimit", 10))
    timeout = settings.get("perDialTimeout", 15)
    delay = 0.1
    for count in itertools.count(1):
        try:
            async with asyncio.timeout(timeout or None):
                return await attempt()
        except (OSError, asyncssh.Error) as error:
            reason = f"timed out after {timeout:g} s" if isinstance(error, TimeoutError) else str(error)
            if 0 <= limit < count:
                raise CommandError(f"{what}: after {count} failed attempts: {reason}") from error
        await log(f"{what} {count}/{limit if limit >= 0 else 'inf'} failed: retrying ({reason})")
        await asyncio.sleep(delay)
        delay = min(1.5 * delay, 5)
    raise AssertionError("unreachable")


async def _authentication(settings: dict[str, Any], stack: contextlib.AsyncExitStack) -> dict[str, Any]:
    """The credentials for the login. Keys in the user's home directory are never used.

    With a private key, the agent is not used, because servers reject clients that offer too many keys.
    """
    keys: list[Any] = []
    if text := settings.get("privateKey"):
        try:
            keys = [asyncssh.import_private_key(text, settings.get("privateKeyPassword"))]
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise CommandError(f"cannot read connection.privateKey: {error}") from error
    elif path := settings.get("agentSocketPath") or os.environ.get("SSH_AUTH_SOCK"):
        try:
            agent = await stack.enter_async_context(asyncssh.connect_agent(path))
            keys = list(await agent.get_keys())
        except (OSError, asyncssh.Error) as error:
            raise CommandError(f"the SSH agent at {path} does not answer: {error}") from error
    return {"password": settings.get("password"), "client_keys": keys or None, "agent_path": None}


def _host_key(text: str) -> asyncssh.SSHKey:
    """The key in a line of authorized_keys or known_hosts, which may contain other fields."""
    words = text.split()
    for kind, key in itertools.pairwise(words):
        if kind.startswith(("ssh-", "ecdsa-", "sk-")):
            with contextlib.suppress(asyncssh.KeyImportError):
                return asyncssh.import_public_key(f"{kind} {key}")
    raise CommandError(
        f"connection.hostKey: expected a public key like `ssh-ed25519 AAAA...`, found {' '.join(words)[:40]!r}"
    )


def _verification(pinned: asyncssh.SSHKey | None) -> dict[str, Any]:
    """Request only the pinned key's type. Otherwise the server may offer another of its keys."""
    if pinned is None:
        return {"known_hosts": None}
    kind = pinned.get_algorithm()
    return {
        "known_hosts": ([], [], []),  # only _Client verifies keys
        "server_host_key_algs": ["rsa-sha2-512", "rsa-sha2-256"] if kind == "ssh-rsa" else [kind],
    }


class _Client(asyncssh.SSHClient):
    def __init__(self, pinned: asyncssh.SSHKey | None, keys_seen: list[asyncssh.SSHKey]) -> None:
        self._pinned = pinned
        self._keys_seen = keys_seen

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self._keys_seen.append(key)
        return key == self._pinned
