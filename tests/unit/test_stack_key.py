"""The key of `dask:sshKey` is checked before a preview shows anything."""

import subprocess
from pathlib import Path

import pulumi
import pytest

from components.machines.sources.existing import usable


def key(folder: Path, kind: str, passphrase: str = "") -> str:
    path = folder / "key"
    words = ["-t", kind, "-N", passphrase, *(["-m", "PEM"] if kind == "ecdsa" else [])]
    subprocess.run(["ssh-keygen", "-q", *words, "-f", path], check=True)
    return path.read_text()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_keys_with_any_line_ends_are_accepted(tmp_path: Path, kind: str) -> None:
    text = key(tmp_path, kind)
    assert usable(text.rstrip().replace("\n", "\r\n")) == text


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_a_key_with_a_passphrase_is_rejected_with_the_agent_as_a_remedy(tmp_path: Path, kind: str) -> None:
    with pytest.raises(pulumi.RunError, match=r"has a passphrase.*SSH agent.*pulumi config rm dask:sshKey"):
        usable(key(tmp_path, kind, "secret"))


def test_invalid_keys_are_rejected_without_showing_their_text() -> None:
    with pytest.raises(pulumi.RunError, match="is not a private key; set it again: pulumi config set") as raised:
        usable("rubbish")
    assert "rubbish" not in str(raised.value)
