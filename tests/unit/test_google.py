"""How an account is found without using it."""

from pathlib import Path

import pytest

from daskstack import google


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(google, "PRODUCT", tmp_path / "product_name")


@pytest.mark.parametrize("name", google.VARIABLES)
def test_a_variable_is_an_account(tmp_path: Path, name: str) -> None:
    assert google.has_credentials({"HOME": str(tmp_path), name: "x"})
    assert not google.has_credentials({"HOME": str(tmp_path), name: ""})


@pytest.mark.parametrize(("variable", "folder"), [("HOME", ".config/gcloud"), ("CLOUDSDK_CONFIG", "")])
def test_what_gcloud_keeps_is_an_account(tmp_path: Path, variable: str, folder: str) -> None:
    environ = {"HOME": str(tmp_path / "none"), variable: str(tmp_path)}
    assert not google.has_credentials(environ)
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "application_default_credentials.json").touch()
    assert google.has_credentials(environ)


def test_a_machine_of_googles_has_an_account(tmp_path: Path) -> None:
    google.PRODUCT.write_text("Google Compute Engine\n")
    assert google.has_credentials({"HOME": str(tmp_path)})
