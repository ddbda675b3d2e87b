"""Installs what is missing: python3 -m tools.install WHAT...

    program    the Pulumi engine, its plugins, and .venv with the packages of the program and of the cluster
    dev        the same for stack dev: while an engine is built, also its machines' image and its wheels
    machines   Debian packages that create local machines
    compute    the same, and nftables, for rehearsals of machines in Google Cloud
    cloud      nothing: fails if Pulumi's own plugins are missing
    kubernetes a Kubernetes with one node on this computer, kubectl, helm, and Pulumi's plugin for rehearsals
    rehearsal  stand-ins for the other plugins
    test       everything else that the tests need
    unit       .venv with the packages that tests/unit needs
    lint       the same, and actionlint if Go can build it
    bench      Ansible and dask-kubernetes, for the comparisons in bench/
    pictures   Chromium, and in .venv the packages that take the pictures in docs/pictures

Needs only Python's standard library. Writes messages to stderr; prints nothing if nothing is missing.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

from daskstack import engine
from daskstack.engine import COMMAND, GCP_PLUGIN, KUBERNETES_PLUGIN, MINIMUM, PROJECT, VERSION, dotted
from rehearsal import programs
from tools.debian import KUBERNETES, TEST, for_machines, install_packages
from tools.python_packages import install_bench_venv, install_venv, uv
from tools.running import CACHE, InstallError, made_whole, one_at_a_time, phase, run, say, which

SITE = "https://get.pulumi.com/releases/sdk"
ACTIONLINT = "v1.7.12"


def main(words: list[str]) -> None:
    os.environ.setdefault("UV_SYSTEM_CERTS", "1")  # uv's own certificates do not include a private network's
    with one_at_a_time():
        if "kubernetes" in words:
            install_engine(lambda: build_kubernetes_plugin(programs.kubernetes_plugin()))
        for word in words:
            WORDS[word]()


def program() -> None:
    install_plugins(install_engine())
    install_venv("requirements.txt")


def dev() -> None:
    if engine.engine() is None:
        machines()
        install_venv("requirements.txt")
    install_plugins(install_engine(prepare_dev))
    install_venv("requirements.txt")


def prepare_dev() -> None:
    """What the first `up` of stack dev would otherwise create later."""
    with phase("Building the image of the local machines, and downloading their wheels"):
        image = PROJECT / "on_this_computer" / "local_machines" / "image.sh"
        run("bash", image, log="image", env={**os.environ, "CACHE": str(CACHE)})
        run(PROJECT / ".venv" / "bin" / "python", "-c", COLLECT, log="wheels", cwd=PROJECT)


COLLECT = """
from pathlib import Path
from on_this_computer.send_environment import collect
from settings.common import JUPYTER_LOCK

collect(Path("environment.lock"), "3.11", "wheelhouse", Path(JUPYTER_LOCK))
"""


def machines() -> None:
    install_packages(for_machines(), "for machines on this computer")


def test() -> None:
    install_packages(TEST, "for the tests")
    build_google(programs.google_program())
    lint()


def lint() -> None:
    unit()
    install_actionlint()


def unit() -> None:
    install_venv("requirements.txt", "tests/requirements.txt")


def compute() -> None:
    install_packages(for_machines() | {"nft": "nftables"}, "for a Compute Engine on this computer")


def cloud() -> None:
    """Fails if the official plugins are missing, because stacks in a cloud never use stand-ins."""
    if "PULUMI_HOME" in engine.variables("dev") and not os.environ.get("PULUMI_HOME"):
        raise InstallError(
            "this stack needs Pulumi's own plugins, which could not be downloaded: install `pulumi`"
            " (https://www.pulumi.com/docs/install) where https://get.pulumi.com can be reached, or try the stack on"
            " this computer with make rehearse"
        )


def kubernetes() -> None:
    install_packages(KUBERNETES, "for a Kubernetes on this computer")
    build_kubernetes(programs.kubernetes_programs())
    found = install_engine()
    install_kubernetes_plugin(found, engine.standins(found) / "rehearsal")


def pictures() -> None:
    install_packages({"chromium": "chromium"}, "for pictures")
    install_venv("requirements.txt", "docs/requirements.txt")


def rehearsal() -> None:
    """Installs all stand-ins, even if the official plugins are installed."""
    folder = engine.standins(install_engine())
    if not engine.complete(folder):
        with phase("Installing stand-ins for the cloud plugins"):
            install_standins(folder)
    install_venv("requirements.txt")


WORDS = {
    "bench": install_bench_venv,
    "cloud": cloud,
    "compute": compute,
    "dev": dev,
    "kubernetes": kubernetes,
    "lint": lint,
    "machines": machines,
    "pictures": pictures,
    "program": program,
    "rehearsal": rehearsal,
    "test": test,
    "unit": unit,
}


# Engine


def install_engine(build_another: Callable[[], None] = lambda: None) -> Path:
    """Returns the engine. If it must be built, also calls `build_another`, at the same time."""
    if found := engine.engine():
        return found
    why = f"no `pulumi` {dotted(MINIMUM)} or newer on PATH"
    try:
        with phase(f"Downloading Pulumi {VERSION}: {why}"):
            download_engine(engine.downloaded_engine().parent)
        return engine.downloaded_engine()
    except (OSError, HTTPException) as error:
        say(f"{SITE} cannot be reached ({error}): building the engine from its Go modules instead")
        with ThreadPoolExecutor() as pool:
            other = pool.submit(build_another)
            build_engine(engine.built_engine())
        other.result()
        return engine.built_engine()


def download_engine(folder: Path) -> None:
    """Raises OSError or HTTPException if the download fails, InstallError if the checksum differs."""
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    archive = f"pulumi-v{VERSION}-{sys.platform}-{machine}.tar.gz"
    published = fetch(f"{SITE}/pulumi-{VERSION}-checksums.txt").decode()
    expected = re.search(rf"^(\w+) +{re.escape(archive)}$", published, re.MULTILINE)
    content = fetch(f"{SITE}/{archive}")
    found = hashlib.sha256(content).hexdigest()
    if not expected or expected[1] != found:
        raise InstallError(
            f"{SITE}/{archive}: expected the published sha256 {expected and expected[1]}, found {found};"
            " try again; if the checksum still differs, do not use this file"
        )
    with made_whole(folder) as new:
        subprocess.run(["tar", "-xz", "--strip-components=1", "-C", new], input=content, check=True)


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read()


def build_engine(binary: Path) -> None:
    go = find_go(
        "build the engine",
        f", or put `pulumi` {dotted(MINIMUM)} or newer on PATH (https://www.pulumi.com/docs/install)",
    )
    flags = f"-s -w -X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v{VERSION}"
    package = "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
    modules = PROJECT / "rehearsal" / "engine"
    with phase(f"Building Pulumi {VERSION} (about five minutes)"), made_whole(binary.parent) as new:
        run(go, "build", "-trimpath", "-ldflags", flags, "-o", new, package, log="engine", cwd=modules)


def build_kubernetes(folder: Path) -> None:
    """Builds kube, coredns, helm and pause from their Go modules, because no registry has them as packages."""
    if folder.exists():
        return
    go = find_go("build Kubernetes")
    said = f"Building Kubernetes {programs.KUBERNETES} and helm from their Go modules (about fifteen minutes, once)"
    with phase(said), made_whole(folder) as new:
        packages = ("./kube", "./coredns", "./pause", "helm.sh/helm/v3/cmd/helm")
        build = (go, "build", "-trimpath", "-ldflags", programs.KUBERNETES_FLAGS, "-o", new, *packages)
        run(*build, log="kubernetes", cwd=programs.KUBERNETES_MODULES)
        kubectl = new / "kubectl"
        kubectl.write_text('#!/bin/sh\nexec "$(dirname "$(readlink -f "$0")")/kube" kubectl "$@"\n')
        kubectl.chmod(0o755)


def build_google(program: Path) -> None:
    """Builds a Cloud Storage and a metadata server for rehearsals of buckets."""
    if program.exists():
        return
    go = find_go("build a Cloud Storage for tests")
    with phase("Building a Cloud Storage for tests (about two minutes, once)"), made_whole(program.parent) as new:
        build = (go, "build", "-trimpath", "-ldflags", "-s -w", "-o", new / program.name, ".")
        run(*build, log="google", cwd=programs.GOOGLE_MODULES)


def find_go(purpose: str, alternative: str = "") -> str:
    go = which("go")
    said = subprocess.run([go, "version"], capture_output=True, text=True).stdout if go else "none"
    match = re.search(r"go(\d+)\.(\d+)", said)
    # Go 1.21 and newer download the release that a go.mod requires.
    if not go or not match or (int(match[1]), int(match[2])) < (1, 21):
        raise InstallError(
            f"Go 1.21 or newer is needed to {purpose}, found {said.strip()}: install it from"
            f" https://go.dev/dl{alternative}"
        )
    return go


# Plugins


def install_plugins(found: Path) -> None:
    folder = engine.standins(found)
    if engine.official(found) or engine.complete(folder):
        return
    if engine.language_host(found):
        try:
            with phase(f"Downloading Pulumi's command plugin {COMMAND}"):
                environ = {**os.environ, "PULUMI_HOME": str(engine.pulumi_home())}
                install = ("plugin", "install", "resource", "command", COMMAND)
                run(found, *install, log="plugin", timeout=120, env=environ)
            return
        except InstallError:
            say("The download failed: using a stand-in instead")
    uv()
    with phase("Installing stand-ins for Pulumi's official plugins, which cannot be downloaded"):
        install_standins(folder)


def install_standins(folder: Path) -> None:
    sources = folder / "sources"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PROJECT / "rehearsal" / "plugins", sources, ignore=shutil.ignore_patterns("__pycache__"))
    python = folder / "venv" / "bin" / "python"
    run(uv(), "venv", "--python", sys.executable, folder / "venv", log="plugins")
    run(uv(), "pip", "sync", "--require-hashes", "--python", python, sources / "requirements.txt", log="plugins")
    everywhere = {
        f"resource-command-v{COMMAND}/pulumi-resource-command": "resource_command.py",
        f"language-python-v{VERSION}/pulumi-language-python": "language_python.py",
    }
    # Users' own stacks must not find the stand-in for the cloud plugin.
    rehearsed = {f"resource-gcp-v{GCP_PLUGIN}/pulumi-resource-gcp": "resource_gcp.py"}
    for home, plugins in {"home": everywhere, "rehearsal": everywhere | rehearsed}.items():
        # Pulumi would log each value of each resource to a folder of this name: for 200 machines 140 MB, and more than
        # half of the engine's time. No setting turns this off.
        folder.joinpath(home).mkdir()
        folder.joinpath(home, "logs").touch()
        for plugin, source in plugins.items():
            script = folder / home / "plugins" / plugin
            script.parent.mkdir(parents=True)
            script.write_text(f'#!/bin/sh\nexec "{python}" "{sources / source}" "$@"\n')
            script.chmod(0o755)
    (folder / "complete").touch()


def install_kubernetes_plugin(found: Path, home: Path) -> None:
    """Installs Pulumi's own plugin into this Pulumi home: downloads it, or builds it if that fails."""
    plugin = home / "plugins" / f"resource-kubernetes-v{KUBERNETES_PLUGIN}" / "pulumi-resource-kubernetes"
    if plugin.exists():
        return
    if engine.language_host(found):
        try:
            with phase(f"Downloading Pulumi's Kubernetes plugin {KUBERNETES_PLUGIN}"):
                environ = {**os.environ, "PULUMI_HOME": str(home)}
                install = ("plugin", "install", "resource", "kubernetes", KUBERNETES_PLUGIN)
                run(found, *install, log="plugin", timeout=120, env=environ)
            return
        except InstallError:
            say("The download failed: building the plugin from its Go module instead")
    program = programs.kubernetes_plugin()
    build_kubernetes_plugin(program)
    plugin.parent.mkdir(parents=True, exist_ok=True)
    plugin.unlink(missing_ok=True)  # a link to a program that is gone
    plugin.symlink_to(program)


def build_kubernetes_plugin(program: Path) -> None:
    """Builds about version 4.25, the newest in Go's module mirrors. It reports the version that our SDK requires."""
    if program.exists():
        return
    go = find_go("build Pulumi's Kubernetes plugin")
    module = "github.com/pulumi/pulumi-kubernetes/provider/v4"
    flags = f"-s -w -X {module}/pkg/version.Version=v{KUBERNETES_PLUGIN}"
    said = "Building Pulumi's Kubernetes plugin from its Go module (about ten minutes, once)"
    with phase(said), made_whole(program.parent) as new:
        build = (go, "build", "-trimpath", "-ldflags", flags, "-o", new / program.name, ".")
        run(*build, log="kubernetes-plugin", cwd=programs.PLUGIN_MODULES)
        where = [go, "list", "-m", "-f", "{{.Dir}}", module]
        found = subprocess.run(where, cwd=programs.PLUGIN_MODULES, capture_output=True, text=True, check=True).stdout
        for name in ("schema.json", "terraform-mapping.json"):
            shutil.copyfile(Path(found.strip()) / "cmd" / program.name / name, new / name)


def actionlint() -> str | None:
    """The path of the actionlint that we built, or of the one on PATH."""
    return which(str(CACHE / "actionlint" / ACTIONLINT / "actionlint")) or which("actionlint")


def install_actionlint() -> None:
    """Builds actionlint into the cache. Without Go, `make lint` reports that it does not check the workflows."""
    if actionlint() or not which("go"):
        return
    folder = CACHE / "actionlint" / ACTIONLINT
    with phase(f"Building actionlint {ACTIONLINT} for `make lint`"), made_whole(folder) as new:
        module = f"github.com/rhysd/actionlint/cmd/actionlint@{ACTIONLINT}"
        environ = {**os.environ, "GOBIN": str(new)}
        run(find_go("build actionlint"), "install", module, log="actionlint", env=environ)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InstallError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
