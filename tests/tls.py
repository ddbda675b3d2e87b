"""Whether a TLS server accepts a client's certificate."""

import socket
import ssl
import tempfile


def accepts(address: str, certificate: str = "", key: str = "") -> bool:
    """Whether the server talks to a client with this certificate and key (PEM text), or with none.

    The client does not verify the server, so a refusal is always the server's. Silence raises TimeoutError.
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
            # In TLS 1.3 the client hears of a refusal only after the handshake. Dask's servers speak first.
            return connection.recv(1) != b""
    except (ssl.SSLError, ConnectionError):
        return False
