"""The user's own keys: made once by the first `up`, kept encrypted in the stack's state, never on a machine."""

from datetime import date, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

PEM = serialization.Encoding.PEM


def tls_identity() -> dict[str, str]:
    """A new private `key` and the `request` for its certificate, both PEM text."""
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
    """What proves a client: `key` and `request` for TLS, `sshKey` and `sshPublic` for the tunnel."""
    ssh = ssh_identity()
    return tls_identity() | {"sshKey": ssh["private"], "sshPublic": ssh["public"]}


NOTICE = timedelta(days=60)


def notice(subject: str, expires: str, today: date) -> str | None:
    """What to say about certificates that end on the day `expires` (ISO format), None while there is time."""
    left = date.fromisoformat(expires) - today
    if left > NOTICE:
        return None
    return (
        f"the certificates of {subject} end on {expires}, in {left.days} days: raise credentials.renewal by one"
        " and run up, or the cluster refuses them from that day"
    )
