"""TLS keys and certificates of a cluster in Kubernetes.

The first `up` creates them. They are in the stack's state, encrypted, and in Secrets.
"""

from dataclasses import asdict

from daskstack.certificates import new_authority, sign


def tls_identities(cluster: str, subjects: list[str]) -> dict[str, dict[str, str] | str]:
    """For each subject `ca.crt`, `tls.crt` and `tls.key` as PEM text. `expires` is the last day (ISO format).

    Nobody keeps the authority's key, so it cannot sign other certificates.
    """
    authority = new_authority(f"dask {cluster}")
    result: dict[str, dict[str, str] | str] = {"expires": authority.expires}
    for subject in subjects:
        made = sign(authority, subject)
        result[subject] = {"ca.crt": authority.certificate, "tls.crt": made.certificate, "tls.key": made.key}
    return result


def people_authority(cluster: str) -> dict[str, str]:
    """The `certificate` and `key` of the authority that signs the certificates of people with an access file.

    The stack's owner keeps the key. Only the scheduler accepts these certificates, so that nobody with one of them can
    pose as the scheduler or as a worker.
    """
    return asdict(new_authority(f"people of dask {cluster}"))
