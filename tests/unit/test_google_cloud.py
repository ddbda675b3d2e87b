"""How an account is found without using it."""

import re
from pathlib import Path

import pytest
from pulumi import RunError

from components.google_cloud import account_id, require_short
from daskstack import google_credentials


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(google_credentials, "PRODUCT", tmp_path / "product_name")


@pytest.mark.parametrize("name", google_credentials.VARIABLES)
def test_a_variable_counts_as_an_account(tmp_path: Path, name: str) -> None:
    assert google_credentials.has_credentials({"HOME": str(tmp_path), name: "x"})
    assert not google_credentials.has_credentials({"HOME": str(tmp_path), name: ""})


@pytest.mark.parametrize(("variable", "folder"), [("HOME", ".config/gcloud"), ("CLOUDSDK_CONFIG", "")])
def test_stored_gcloud_credentials_count_as_an_account(tmp_path: Path, variable: str, folder: str) -> None:
    environ = {"HOME": str(tmp_path / "none"), variable: str(tmp_path)}
    assert not google_credentials.has_credentials(environ)
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "application_default_credentials.json").touch()
    assert google_credentials.has_credentials(environ)


def test_a_google_machine_has_an_account(tmp_path: Path) -> None:
    google_credentials.PRODUCT.write_text("Google Compute Engine\n")
    assert google_credentials.has_credentials({"HOME": str(tmp_path)})


def test_long_names_have_different_account_ids() -> None:
    assert account_id("dask-vms") == "dask-vms"
    same = "dask-the-same-beginning-and-then-"
    ids = {account_id(same + end) for end in ("one", "other")}
    assert len(ids) == 2
    assert all(re.fullmatch("[a-z][a-z0-9-]{4,28}[a-z0-9]", each) for each in ids)


def test_a_machines_name_that_google_would_reject_is_refused_before_anything_is_created() -> None:
    longest = f"dask-{'s' * 35}-{'g' * 20}-1"
    require_short([longest])
    with pytest.raises(RunError, match=f"{longest}0 has more than the 63 characters"):
        require_short([longest, f"{longest}0"])
