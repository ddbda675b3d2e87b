"""The packages of this Python's environment, as an input file."""

import importlib.metadata
import io
import json
import sys
from pathlib import Path

import pytest

from tools import lock_from, packages_here
from tools.running import InstallError


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder with packages."""
    found = importlib.metadata.distributions
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: found(path=[str(tmp_path / "site")]))
    return tmp_path / "site"


def install(site: Path, name: str, version: str, *requires: str, origin: dict | None = None) -> None:
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {each}" for each in requires)]
    folder.joinpath("METADATA").write_text("\n".join(lines))
    if origin:
        folder.joinpath("direct_url.json").write_text(json.dumps(origin))


def listed(folder: Path, unpinned: tuple[str, ...] = ()) -> list[str]:
    lines = packages_here.read().input(set(unpinned), folder).splitlines()[1:]
    return [line for line in lines if line not in packages_here.NEEDED]


def test_packages_that_no_other_one_requires_are_pinned(site: Path, tmp_path: Path) -> None:
    install(site, "Model_Zoo", "1.0", "tensors>=2", 'plots; extra == "plots"', 'windows; sys_platform == "win32"')
    install(site, "tensors", "2.0+cu121")
    install(site, "plots", "3.0+cpu")
    install(site, "windows", "4.0")
    assert listed(tmp_path) == ["model-zoo==1.0", "plots==3.0", "windows==4.0"]
    assert listed(tmp_path, ("plots",)) == ["model-zoo==1.0", "plots", "windows==4.0"]


def test_a_circle_of_packages_is_listed_unless_another_one_requires_it(site: Path, tmp_path: Path) -> None:
    for name, other in (("first", "second"), ("second", "first")):
        install(site, name, "1.0", other)
    assert listed(tmp_path) == ["first==1.0"]
    install(site, "user", "1.0", "second")
    assert listed(tmp_path) == ["user==1.0"]


def test_versions_on_which_notebook_and_workers_must_agree_are_pinned(site: Path, tmp_path: Path) -> None:
    install(site, "daskstack", "0.1", "dask", "paramiko")
    install(site, "paramiko", "1.0", "bcrypt")
    install(site, "bcrypt", "1.0")
    install(site, "dask", "2.0", "toolz", "locket")
    install(site, "toolz", "3.0")
    install(site, "locket", "4.0")
    assert listed(tmp_path) == ["dask==2.0", "toolz==3.0"]


def test_the_cluster_gets_what_its_check_and_dashboard_need(site: Path, tmp_path: Path) -> None:
    site.mkdir()
    assert packages_here.read().input(set(), tmp_path).splitlines()[1:] == list(packages_here.NEEDED)


def test_packages_of_no_index_are_listed_with_their_place(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages_here, "PROJECT", tmp_path / "project")
    inside, outside = tmp_path / "project/own", tmp_path / "other"
    for folder in (inside, outside):
        folder.mkdir(parents=True)
    git = {"vcs_info": {"vcs": "git", "commit_id": "abc"}, "url": "https://example.com/me/git"}
    install(site, "git", "1.0", origin=git)
    install(site, "part", "1.0", origin={**git, "subdirectory": "part"})
    install(site, "editable", "1.0", origin={"url": inside.as_uri(), "dir_info": {"editable": True}})
    install(site, "other", "1.0", origin={"url": outside.as_uri(), "dir_info": {}})
    install(site, "conda", "1.0", origin={"url": "file:///home/conda/feedstock_root/work", "dir_info": {}})
    install(site, "wheel-of", "1.0", origin={"url": "https://example.com/x.whl", "archive_info": {}})
    assert listed(tmp_path / "project/environments") == [
        "conda==1.0",
        "editable @ ../own",
        "git @ git+https://example.com/me/git@abc",
        f"other @ {outside}",
        "part @ git+https://example.com/me/git@abc#subdirectory=part",
        "wheel-of @ https://example.com/x.whl",
    ]


def test_a_folder_with_a_space_is_refused(site: Path, tmp_path: Path) -> None:
    (tmp_path / "my code").mkdir()
    install(site, "own", "1.0", origin={"url": (tmp_path / "my code").as_uri(), "dir_info": {}})
    with pytest.raises(InstallError, match=r"own is installed from .*/my code, whose path has a space: move"):
        packages_here.read()


@pytest.mark.parametrize(
    ("answer", "writes"), [("", False), ("\n", False), ("n\n", False), ("y\n", True), ("Yes\n", True)]
)
def test_only_a_yes_confirms(answer: str, writes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    assert lock_from.confirmed("Write?") == writes
