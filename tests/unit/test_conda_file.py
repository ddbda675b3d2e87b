"""Conda's environment.yml as an input file."""

from pathlib import Path

import pytest

from tools import conda_file
from tools.running import InstallError


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("numpy", ("numpy", "")),
        ("numpy=1.26", ("numpy", "==1.26.*")),
        ("numpy = 1.26", ("numpy", "==1.26.*")),
        ("numpy=1.26.*", ("numpy", "==1.26.*")),
        ("numpy=1.26.4=py312h_0", ("numpy", "==1.26.4")),
        ("numpy=1.26.*=*_0", ("numpy", "==1.26.*")),
        ("numpy==1.26.4", ("numpy", "==1.26.4")),
        ("numpy 1.26.4 py312h_0", ("numpy", "==1.26.4")),
        ("numpy 1.26.*", ("numpy", "==1.26.*")),
        ("numpy *", ("numpy", "")),
        ("numpy >= 1.26, <2", ("numpy", ">=1.26,<2")),
        ("numpy>=1.26", ("numpy", ">=1.26")),
        ("numpy!=1.26.1", ("numpy", "!=1.26.1")),
        ("numpy~=1.26", ("numpy", "~=1.26")),
        ("conda-forge/linux-64::NumPy=1", ("numpy", "==1.*")),
    ],
)
def test_versions_are_written_as_the_index_does(words: str, line: tuple[str, str]) -> None:
    assert conda_file.parsed(words) == line


@pytest.mark.parametrize("words", ["numpy 1.26|1.27", "numpy[version='>=1']", "openssl=1.1.1w_x", "=1"])
def test_versions_that_no_index_can_have_are_refused(words: str) -> None:
    with pytest.raises(InstallError, match=r"correct it|write, for example"):
        conda_file.parsed(words)


def read(folder: Path, text: str) -> conda_file.Environment:
    (folder / "environment.yml").write_text(text)
    return conda_file.read(folder / "environment.yml")


def test_conda_packages_get_their_names_on_the_index(tmp_path: Path) -> None:
    found = read(tmp_path, "dependencies: [pytorch=2.9, ruamel.yaml, typing_extensions, pip, 'python>=3.12,<3.14']")
    assert list(found.lines.values()) == ["torch==2.9.*", "ruamel-yaml", "typing-extensions"]
    assert found.python == "3.12"


def test_packages_of_other_languages_are_not_looked_for_on_the_index(tmp_path: Path) -> None:
    others = [
        "cudatoolkit=11",
        "libgomp",
        "_libgcc_mutex",
        "ffmpeg",
        "r-ggplot2",
        "graphviz",
        "ld_impl_linux-64",
        "zstd",
    ]
    python = ["libpysal", "librosa", "ruamel.yaml", "rich", "zstandard", "gitpython"]
    found = read(tmp_path, f"dependencies: [{', '.join(others + python)}]")
    assert found.others == others and list(found.lines) == python


@pytest.mark.parametrize("text", ["", "name: x", "dependencies: 3", "dependencies: [{conda: []}]", "a: [", "- numpy"])
def test_a_file_without_a_list_of_packages_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InstallError, match="write the packages as a list under `dependencies`"):
        read(tmp_path, text)


def test_the_input_file_lists_what_the_index_has_and_what_a_cluster_needs(tmp_path: Path) -> None:
    found = read(tmp_path, "dependencies: [numpy, lost, {pip: [-e ., 'dask[array]>2', bokeh]}]")
    lines = found.input({"lost": "not there"}, "environment.yml").splitlines()[1:]
    assert lines == ["-e .", "bokeh", "dask[array]>2", "distributed", "numpy", "pandas", "pyarrow"]
