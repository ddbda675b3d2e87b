"""Certificates and kubeconfigs of the cluster, valid for ten years."""

import base64
import datetime
import ipaddress
import os
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CONTEXT = "rehearsal"
# File -> user and group of its holder for the API server.
CLIENTS = {
    "admin": ("admin", "system:masters"),
    "controllers": ("system:kube-controller-manager", None),
    "scheduler": ("system:kube-scheduler", None),
    "proxy": ("system:kube-proxy", None),
    "node": ("system:node:node", "system:nodes"),
}


def make(folder: Path, server: str, names: list[str]) -> None:
    """Fill a new folder: ca, server (for the host names and addresses `names`), accounts, clients and kubeconfigs.

    `server` is the API server's URL.
    """
    folder.mkdir(mode=0o700)
    authority = _name("rehearsal", None)
    signer = _write_key(folder / "ca.key")
    _certify(folder / "ca.crt", authority, signer, authority, signer, x509.BasicConstraints(True, None))

    key = _write_key(folder / "server.key")
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
    _certify(folder / "server.crt", _name("server", None), key, authority, signer, usage, alternatives)

    _write_key(folder / "accounts.key")
    for client, (user, group) in CLIENTS.items():
        key = _write_key(folder / f"{client}.key")
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        _certify(folder / f"{client}.crt", _name(user, group), key, authority, signer, usage)
        private(folder / f"{client}.kubeconfig", yaml.safe_dump(kubeconfig(folder, client, server)))


def kubeconfig(folder: Path, client: str, server: str) -> dict:
    cluster = {"server": server, "certificate-authority-data": _encoded(folder / "ca.crt")}
    user = {
        "client-certificate-data": _encoded(folder / f"{client}.crt"),
        "client-key-data": _encoded(folder / f"{client}.key"),
    }
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CONTEXT, "cluster": cluster}],
        "users": [{"name": client, "user": user}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": client}}],
        "current-context": CONTEXT,
    }


def private(path: Path, content: str | bytes) -> None:
    """Write a file that other users can never read, not even while it is written."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _name(user: str, group: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
    if group:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(attributes)


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    private(path, key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()))
    return key


def _certify(
    path: Path,
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    *extensions: x509.ExtensionType,
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    # Backdate by a minute, because clocks differ.
    builder = builder.not_valid_before(now - datetime.timedelta(minutes=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=3650))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    private(path, builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
