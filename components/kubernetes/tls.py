"""TLS keys and certificates of a cluster in Kubernetes.

The first `up` creates them. They are in the stack's state, encrypted, and in Secrets.
"""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

VALID = timedelta(days=365)
CLOCKS_DIFFER = timedelta(days=1)
PEM = serialization.Encoding.PEM


def tls_identities(cluster: str, subjects: list[str]) -> dict[str, dict[str, str] | str]:
    """For each subject `ca.crt`, `tls.crt` and `tls.key` as PEM text. `expires` is the last day (ISO format).

    Nobody keeps the authority's key, so it cannot sign other certificates.
    """
    now = datetime.now(UTC)
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = _name(f"dask {cluster}")

    def certificate(subject: x509.Name, key: ec.EllipticCurvePublicKey, signs: bool) -> str:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCKS_DIFFER)
            .not_valid_after(now + VALID)
            .add_extension(x509.BasicConstraints(ca=signs, path_length=None), critical=True)
            .add_extension(_usage(signs), critical=True)
            # Python 3.13 and newer can require these two (VERIFY_X509_STRICT).
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        )
        return builder.sign(authority, hashes.SHA256()).public_bytes(PEM).decode()

    own = certificate(issuer, authority.public_key(), True)
    result: dict[str, dict[str, str] | str] = {"expires": (now + VALID).date().isoformat()}
    for subject in subjects:
        key = ec.generate_private_key(ec.SECP256R1())
        result[subject] = {
            "ca.crt": own,
            "tls.crt": certificate(_name(subject), key.public_key(), False),
            "tls.key": key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode(),
        }
    return result


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _usage(signs: bool) -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign",
              "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, **dict.fromkeys(others, False))
