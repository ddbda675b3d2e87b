"""`daskstack lock --from-here`, and `daskstack lock` with a conda file, with a real package index."""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from tests.checkout import LIMIT, PROJECT, Checkout
from tools.python_packages import uv

FILES = ["environment.in", "environment.lock", "charts/jupyter.lock"]


def test_the_packages_of_an_environment_become_the_lock_after_a_yes(tmp_path: Path) -> None:
    project = Checkout(tmp_path).folder
    python = tmp_path / "environment/bin/python"
    subprocess.run([uv(), "venv", "--quiet", "--python", sys.executable, python.parents[1]], check=True)
    install = [uv(), "pip", "install", "--quiet", "--python", python]
    subprocess.run([*install, "-c", "requirements.txt", "-r", "environment.lock", project], cwd=project, check=True)
    subprocess.run([*install, "cowpy==1.1.5", "toolz==1.0.0"], check=True)

    def lock(answer: str) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", "daskstack", "lock", "--from-here"]
        environ = {**os.environ, "DASKSTACK_PROJECT": str(project)}
        return subprocess.run(
            command, cwd=tmp_path, input=answer, env=environ, capture_output=True, text=True, timeout=LIMIT
        )

    def files() -> dict[Path, str]:
        return {path: path.read_text() for path in [*project.glob("environment*/*"), *project.glob("environment*.*")]}

    before = files()
    subprocess.run([*install, "docopt==0.6.2"], check=True)
    refused = lock(answer="y\n")
    assert refused.returncode == 1 and "docopt==0.6.2 has no usable wheels" in refused.stderr
    assert "Nothing was written" in refused.stderr and files() == before
    subprocess.run([uv(), "pip", "uninstall", "--quiet", "--python", python, "docopt"], check=True)
    refused = lock(answer="")
    assert f"Write {', '.join(FILES)}? [y/N]" in refused.stdout, refused.stderr
    assert refused.returncode == 1 and "Nothing was written" in refused.stderr
    assert files() == before
    # This Python is one of those for which the lock has different versions of a package.
    shown = refused.stdout.partition("environment.lock:\n")[2].partition("charts/jupyter.lock:\n")[0].splitlines()
    changed = [re.sub("toolz .* →", "toolz →", line) for line in shown if " or " not in line]
    assert changed == ["  + cowpy 1.1.5", "  ~ toolz → 1.0.0"]

    done = lock(answer="y\n")
    assert done.returncode == 0, done.stderr
    text = (project / "environment.lock").read_text()
    for pin in ("cowpy==1.1.5", "toolz==1.0.0"):
        assert re.search(rf"^{pin} \\\n    --hash=sha256:", text, re.MULTILINE)
        assert f"{pin}\n" in (project / "environment.in").read_text()
    assert "toolz==1.0.0 " in (project / "charts/jupyter.lock").read_text(), "notebooks have the workers' version"
    assert "uv pip compile --universal" in text
    assert "paramiko" not in text and "daskstack" not in text and ".new-" not in text


def test_packages_of_a_conda_file_are_locked_and_others_are_named(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    folder = checkout.folder / "environments"
    packages = [
        "python=3.12",
        "conda-forge::cowpy=1.1.5=0",
        "matplotlib-base>=3.10",
        "docopt=0.6",
        "r-base",
        "gcc=13.*",
    ]
    folder.joinpath("mine.yml").write_text(
        yaml.dump({"dependencies": [*packages, {"pip": ["tinycss2>=1", "dask[array]"]}]})
    )

    def lock(answer: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "daskstack", "lock", str(folder / "mine.yml")]
        return subprocess.run(
            command,
            cwd=checkout.folder,
            input=answer,
            env=checkout.environ,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )

    refused = lock("")
    assert refused.returncode == 1 and "Nothing was written" in refused.stderr
    assert not folder.joinpath("mine.in").exists() and not folder.joinpath("mine.lock").exists()
    for text in (
        "left out: docopt=0.6 (docopt>=0.6.0 has no usable wheels)",
        "left out: r-base (no Python package)\nleft out: gcc=13.* (no Python package)",
        'environment: {python: "3.12"}',
        "  + cowpy 1.1.5\n",
    ):
        assert text in refused.stdout, refused.stdout + refused.stderr

    done = lock("y\n")
    assert done.returncode == 0, done.stderr
    lines = [
        "bokeh",
        "cowpy==1.1.5",
        "dask[array]",
        "distributed",
        "matplotlib>=3.10",
        "pandas",
        "pyarrow",
        "tinycss2>=1",
    ]
    assert folder.joinpath("mine.in").read_text().splitlines()[1:] == lines
    text = folder.joinpath("mine.lock").read_text()
    assert "--python-version 3.12 " in text and re.search(r"^cowpy==1.1.5 \\\n    --hash=sha256:", text, re.MULTILINE)
    assert "\nmatplotlib==" in text and "\ntinycss2==" in text and "docopt" not in text
    assert checkout.folder.joinpath("environment.in").read_text() == (PROJECT / "environment.in").read_text()
