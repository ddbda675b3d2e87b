"""Whether a TLS server accepts a client's certificate."""

import socket
import ssl
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


def imitated(certificate: str) -> tuple[str, str]:
    """A copy of this certificate that another authority signed, and its key; both as PEM text."""
    known = x509.load_pem_x509_certificate(certificate.encode())
    key, authority = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    new = x509.CertificateBuilder(known.issuer, known.subject, key.public_key(), known.serial_number)
    new = new.not_valid_before(known.not_valid_before_utc).not_valid_after(known.not_valid_after_utc)
    for extension in known.extensions:
        new = new.add_extension(extension.value, extension.critical)
    signed = new.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return signed.decode(), secret.decode()


def accepts(address: str, certificate: str = "", key: str = "") -> bool:
    """Whether the server accepts a client with this certificate and key (PEM text), or without one.

    The client does not verify the server, so only the server can reject. Silence raises TimeoutError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate:
        with tempfile.NamedTemporaryFile("w", prefix="daskstack-") as pair:
            pair.write(certificate + key)
            pair.flush()
            context.load_cert_chain(pair.name)
    host, port = address.removeprefix("tls://").rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), 30) as plain, context.wrap_socket(plain) as connection:
            # In TLS 1.3 the client learns of a rejection only after the handshake. Dask's servers send first.
            return connection.recv(1) != b""
    except (ssl.SSLError, ConnectionError):
        return False
