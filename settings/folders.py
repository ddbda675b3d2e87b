"""Checks of the folders that a stack may use on machines, and of mount options."""

import posixpath
import re


def is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


_IN_MEMORY = "is in memory and is lost on reboot"
_SYSTEM = "is used by the operating system"
_OWN = "is used by the cluster itself"
_SERVICE = "is where system services keep their data"
_NO_FOLDER = {
    r"/(dev|proc|run|sys|var/lock|var/run)(/.*)?": _IN_MEMORY,
    r"/(home|media|mnt|opt|srv|tmp|var|var/lib|var/tmp)?": _SYSTEM,
    r"/(bin|boot|etc|lib(32|64|x32)?|root|sbin|usr|var/(cache|log|mail|spool))(/.*)?": _SYSTEM,
    r"/var/lib/(apt|dbus|dpkg|systemd)(/.*)?": _SYSTEM,
    r"/home/[^/]+": "is a user's home directory",
}
NO_DATA = _NO_FOLDER | {
    r"/(opt|var/lib)/daskstack(/.*)?": _OWN,
    r"/(srv/(ftp|git|tftp|www)|var/(backups|crash|games|lib|opt|www))(/.*)?": _SERVICE,
    r"/var/tmp/.*": "is cleaned of old files by the system",
}
NO_POD_DATA = NO_DATA | {r"/(opt/dask|spill)(/.*)?": _OWN}
NO_SPILL = _NO_FOLDER | {
    r"/opt/daskstack(/.*)?|/var/lib/daskstack": _OWN,
    r"/(srv/(ftp|git|tftp|www)|var/(backups|crash|games|lib(?!/daskstack/)|opt|www))(/.*)?": _SERVICE,
    r"/tmp/.*": "is in memory on newer systems",
}


def valid_folder(refused: dict[str, str], example: str, path: str) -> str:
    """An absolute path on a disk that nothing else uses, in characters that systemd units need not quote."""
    if not path.startswith("/"):
        raise ValueError(f"{path or 'an empty path'} is not an absolute path; write e.g. {example}")
    if odd := sorted(set(re.findall(r"[^A-Za-z0-9._/-]", path))):
        found = ", ".join("a space" if character == " " else ascii(character) for character in odd)
        raise ValueError(f"{path} contains {found}; use only letters, digits, and . _ - /, e.g. {example}")
    if path != (plain := "/" + posixpath.normpath(path).lstrip("/")):
        right = example if any(re.fullmatch(pattern, plain) for pattern in refused) else plain
        raise ValueError(f"{path} contains . or .. or an extra /; write e.g. {right}")
    for pattern, reason in refused.items():
        if re.fullmatch(pattern, path):
            raise ValueError(f"{path} {reason}; write another, e.g. {example}")
    return path


# Only options that affect speed: none that change host keys, commands or file ownership. With attr_timeout, the kernel
# would show one user's answer to all, and to users who cannot use the directory.
MOUNT_OPTIONS = {
    *("auto_cache", "cache_timeout", "compression", "dcache_max_size", "dcache_timeout", "dir_cache"),
    *("direct_io", "entry_timeout", "kernel_cache", "max_conns", "max_read", "negative_timeout", "noatime"),
    *("no_readahead", "sync_readdir"),
    *("Ciphers", "Compression", "ConnectTimeout", "IPQoS", "KexAlgorithms", "MACs", "RekeyLimit", "TCPKeepAlive"),
}


def valid_mount_option(option: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*(=[A-Za-z0-9_.:/@+-]+)?", option):
        raise ValueError(f"{option!r} is not a single sshfs option; write e.g. compression=no")
    name = option.split("=")[0]
    if name not in MOUNT_OPTIONS:
        known = ", ".join(sorted(sorted(MOUNT_OPTIONS, reverse=True), key=str.lower))
        raise ValueError(f"{name} is not allowed here; the options are {known}")
    return option
