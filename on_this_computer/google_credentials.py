"""How programs find a Google account, looked at without using it."""

import os
from collections.abc import Mapping
from pathlib import Path

VARIABLES = ("GOOGLE_CREDENTIALS", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_OAUTH_ACCESS_TOKEN")
PRODUCT = Path("/sys/class/dmi/id/product_name")  # a machine of Google's own has its account


def has_credentials(environ: Mapping[str, str] = os.environ) -> bool:
    folder = Path(environ.get("CLOUDSDK_CONFIG") or Path(environ.get("HOME") or Path.home()) / ".config" / "gcloud")
    return (
        any(environ.get(name) for name in VARIABLES)
        or (folder / "application_default_credentials.json").is_file()
        or (PRODUCT.is_file() and PRODUCT.read_text().startswith("Google Compute Engine"))
    )


if __name__ == "__main__":
    # For a preview, which asks Google nothing: the plugin wants to see some credential all the same.
    if not has_credentials():
        print("export GOOGLE_OAUTH_ACCESS_TOKEN=preview")
