"""Checks whether programs can find credentials for Google Cloud, without a request to Google."""

import os
from collections.abc import Mapping
from pathlib import Path

VARIABLES = ("GOOGLE_CREDENTIALS", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_OAUTH_ACCESS_TOKEN")
PRODUCT = Path("/sys/class/dmi/id/product_name")  # a Google Compute Engine machine has a service account


def has_credentials(environ: Mapping[str, str] = os.environ) -> bool:
    folder = Path(environ.get("CLOUDSDK_CONFIG") or Path(environ.get("HOME") or Path.home()) / ".config" / "gcloud")
    return (
        any(environ.get(name) for name in VARIABLES)
        or (folder / "application_default_credentials.json").is_file()
        or (PRODUCT.is_file() and PRODUCT.read_text().startswith("Google Compute Engine"))
    )
