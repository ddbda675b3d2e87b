"""TLS certificates of clusters in Kubernetes, which this computer signs. They last a year, like their authority's."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

VALID = timedelta(days=365)
CLOCKS_DIFFER = timedelta(days=1)
PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Identity:
    certificate: str
    """PEM text, like the key."""
    key: str

    @property
    def serial(self) -> str:
        """The certificate's serial number, hexadecimal."""
        return f"{_read(self.certificate).serial_number:x}"

    @property
    def expires(self) -> str:
        """The certificate's last day (ISO format)."""
        return _read(self.certificate).not_valid_after_utc.date().isoformat()


def new_authority(name: str) -> Identity:
    """Its key can sign certificates."""
    key = ec.generate_private_key(ec.SECP256R1())
    end = datetime.now(UTC) + VALID
    return _identity(key, _certificate(_name(name), key.public_key(), _name(name), key, end, signs=True))


def sign(authority: Identity, subject: str) -> Identity:
    """A new key and its certificate, which ends with the authority's, as it is useless afterwards."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = _read(authority.certificate)
    signer: Any = serialization.load_pem_private_key(authority.key.encode(), None)
    end = issuer.not_valid_after_utc
    return _identity(key, _certificate(_name(subject), key.public_key(), issuer.subject, signer, end, signs=False))


def _certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    end: datetime,
    signs: bool,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - CLOCKS_DIFFER)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=signs, path_length=None), critical=True)
        .add_extension(_usage(signs), critical=True)
        # Python 3.13 and newer can require these two (VERIFY_X509_STRICT).
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return builder.sign(signer, hashes.SHA256())


def _identity(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Identity:
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Identity(certificate.public_bytes(PEM).decode(), private.decode())


def _read(certificate: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.encode())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _usage(signs: bool) -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign",
              "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, **dict.fromkeys(others, False))
