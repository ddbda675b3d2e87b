"""Keys of clients. Private ones never reach a machine.

The stack's own stay in its state, encrypted; those of people are in their access files.
"""

from datetime import date, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

PEM = serialization.Encoding.PEM


def tls_identity() -> dict[str, str]:
    """A new private `key` and the `request` for its certificate, both as PEM text."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return {
        "key": key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode(),
        "request": request.public_bytes(PEM).decode(),
    }


def ssh_identity() -> dict[str, str]:
    """A new SSH key: `private` in OpenSSH's format, `public` as one line of an authorized_keys file."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return {"private": private.decode(), "public": public.decode()}


def client_identity() -> dict[str, str]:
    """A client's new keys: `key` and `request` for TLS, `sshKey` and `sshPublic` for the tunnel."""
    ssh = ssh_identity()
    return tls_identity() | {"sshKey": ssh["private"], "sshPublic": ssh["public"]}


NOTICE = timedelta(days=60)


def notice(subject: str, expires: str, today: date) -> str | None:
    """The warning about certificates that end soon, on the day `expires` (ISO format). None if they end later."""
    left = date.fromisoformat(expires) - today
    if left > NOTICE:
        return None
    return (
        f"the certificates of {subject} expire on {expires}, in {left.days} days: increase credentials.renewal by 1 and"
        " run up; otherwise the cluster rejects them from that day on"
    )
