"""Installs what is not there yet: python3 -m tools.install WHAT...

    program    the Pulumi engine, its plugins, and .venv with what the program imports
    machines   the Debian packages that local machines are made with
    compute    these, and nftables, for rehearsals of machines in Google Cloud
    cloud      nothing: says where Pulumi's own plugins are missing
    kubernetes what a Kubernetes of one node on this computer is made of, kubectl and helm
    rehearsal  stand-ins for the plugins of clouds
    test       what the tests need beside these
    unit       .venv with what tests/unit needs
    lint       what `make lint` needs: the same, and actionlint where Go can build it
    bench      Ansible, which the figures are compared with

Needs Python's standard library alone. What it prints goes to stderr; where all is there, it prints nothing.
"""

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path

from daskstack import engine
from daskstack.engine import COMMAND, GCP_PLUGIN, KUBERNETES_PLUGIN, MINIMUM, PROJECT, VERSION, digest, dotted
from rehearsal import programs
from tools.running import CACHE, InstallError, made_whole, one_at_a_time, phase, run, say, which

PYTHON = "3.11"  # environment.lock's: notebooks and workers have to agree
SITE = "https://get.pulumi.com/releases/sdk"
ACTIONLINT = "v1.7.12"
# Command that tells whether a Debian package is there -> the package.
MACHINES = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "unshare": "util-linux",
}
# Without these keys nobody could tell Debian's own packages from others; it is a file, not a command.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
BENCH = PROJECT / "bench/requirements.txt"
TEST = {"sshd": "openssh-server", "git": "git"}
KUBERNETES = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "nft": "nftables",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "unshare": "util-linux",
}
# What packages start at the next boot, if let.
SERVICES = {
    "openssh-server": ("ssh.service", "ssh.socket"),
    "etcd-server": ("etcd.service",),
    "containerd": ("containerd.service",),
}


def main(words: list[str]) -> None:
    os.environ.setdefault("UV_SYSTEM_CERTS", "1")  # uv's own roots do not know a closed network's authority
    with one_at_a_time():
        for word in words:
            WORDS[word]()


def program() -> None:
    install_plugins(install_engine())
    install_venv("requirements.txt")


def machines() -> None:
    install_packages(for_machines(), "for machines on this computer")


def for_machines() -> dict[str, str]:
    return MACHINES if KEYRING.exists() else MACHINES | {str(KEYRING): "debian-archive-keyring"}


def test() -> None:
    install_packages(TEST, "for the tests")
    lint()


def lint() -> None:
    unit()
    install_actionlint()


def unit() -> None:
    install_venv("requirements.txt", "tests/requirements.txt")


def compute() -> None:
    install_packages(for_machines() | {"nft": "nftables"}, "for a Compute Engine on this computer")


def cloud() -> None:
    """Stacks in a cloud are built by Pulumi's own plugins or not at all."""
    if "PULUMI_HOME" in engine.variables("dev") and not os.environ.get("PULUMI_HOME"):
        raise InstallError(
            "this stack needs Pulumi's own plugins, which were out of reach: install `pulumi` (https://www.pulumi.com/"
            "docs/install) with a way to https://get.pulumi.com, or try the stack on this computer with make rehearse"
        )


def kubernetes() -> None:
    install_packages(KUBERNETES, "for a Kubernetes on this computer")
    build_kubernetes(programs.kubernetes_programs())


def bench() -> None:
    folder = bench_venv()
    if (folder / "complete").exists():
        return
    uv()
    with phase(f"Installing {BENCH.name}"):
        run(uv(), "venv", "--clear", "--python", sys.executable, folder, log="bench")
        run(uv(), "pip", "sync", "--require-hashes", "--python", folder / "bin" / "python", BENCH, log="bench")
        (folder / "complete").touch()


def rehearsal() -> None:
    """All stand-ins, also where the official plugins are there."""
    folder = engine.standins(install_engine())
    if not engine.complete(folder):
        with phase("Installing stand-ins for the plugins of clouds"):
            install_standins(folder)
    install_venv("requirements.txt")


WORDS = {
    word.__name__: word for word in (program, machines, compute, cloud, kubernetes, rehearsal, test, lint, unit, bench)
}


# Engine


def install_engine() -> Path:
    if found := engine.engine():
        return found
    why = f"no `pulumi` {dotted(MINIMUM)} or newer on PATH"
    try:
        with phase(f"Downloading Pulumi {VERSION}: {why}"):
            download_engine(engine.downloaded_engine().parent)
        return engine.downloaded_engine()
    except (OSError, HTTPException) as error:
        say(f"{SITE} is out of reach ({error}): building the engine from its Go modules instead")
        build_engine(engine.built_engine())
        return engine.built_engine()


def download_engine(folder: Path) -> None:
    """Raises OSError or HTTPException where the site is out of reach, InstallError where the checksum is another."""
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    archive = f"pulumi-v{VERSION}-{sys.platform}-{machine}.tar.gz"
    published = fetch(f"{SITE}/pulumi-{VERSION}-checksums.txt").decode()
    expected = re.search(rf"^(\w+) +{re.escape(archive)}$", published, re.MULTILINE)
    content = fetch(f"{SITE}/{archive}")
    found = hashlib.sha256(content).hexdigest()
    if not expected or expected[1] != found:
        raise InstallError(
            f"{SITE}/{archive}: expected the published sha256 {expected and expected[1]}, found {found};"
            " try again, and do not use it if it stays so"
        )
    with made_whole(folder) as new:
        subprocess.run(["tar", "-xz", "--strip-components=1", "-C", new], input=content, check=True)


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read()


def build_engine(binary: Path) -> None:
    go = find_go("build the engine")
    flags = f"-s -w -X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=v{VERSION}"
    package = "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
    modules = PROJECT / "rehearsal" / "engine"
    with phase(f"Building Pulumi {VERSION} (about five minutes)"), made_whole(binary.parent) as new:
        run(go, "build", "-trimpath", "-ldflags", flags, "-o", new, package, log="engine", cwd=modules)


def build_kubernetes(folder: Path) -> None:
    """kube, coredns, helm and pause from their Go modules, and `kubectl`; nobody publishes them as packages."""
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


def find_go(purpose: str) -> str:
    go = which("go")
    said = subprocess.run([go, "version"], capture_output=True, text=True).stdout if go else "none"
    match = re.search(r"go(\d+)\.(\d+)", said)
    # From 1.21 on Go fetches by itself the newer release that a go.mod asks for.
    if not go or not match or (int(match[1]), int(match[2])) < (1, 21):
        raise InstallError(
            f"Go 1.21 or newer is needed to {purpose}, found {said.strip()}: install it from https://go.dev/dl,"
            f" or put `pulumi` {dotted(MINIMUM)} or newer on PATH (https://www.pulumi.com/docs/install)"
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
            say("It is out of reach: using a stand-in instead")
    uv()
    with phase("Installing stand-ins for Pulumi's official plugins, which are out of reach"):
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
    # The cloud's are never where a user's own stacks could meet them.
    rehearsed = {
        f"resource-kubernetes-v{KUBERNETES_PLUGIN}/pulumi-resource-kubernetes": "resource_kubernetes.py",
        f"resource-gcp-v{GCP_PLUGIN}/pulumi-resource-gcp": "resource_gcp.py",
    }
    for home, plugins in {"home": everywhere, "rehearsal": everywhere | rehearsed}.items():
        for plugin, source in plugins.items():
            script = folder / home / "plugins" / plugin
            script.parent.mkdir(parents=True)
            script.write_text(f'#!/bin/sh\nexec "{python}" "{sources / source}" "$@"\n')
            script.chmod(0o755)
    (folder / "complete").touch()


# Python


def install_venv(*locks: str) -> None:
    """Brings .venv to these locks; leaves it alone where it has them, and maybe more."""
    python = PROJECT / ".venv" / "bin" / "python"
    state = PROJECT / ".venv" / "locks"
    wanted = {f"{lock} {digest(PROJECT / lock)}" for lock in locks}
    usable = python.exists() and state.exists()
    if usable and wanted <= set(state.read_text().splitlines()):
        return
    uv()
    with phase(f"Installing {' and '.join(locks)} into .venv"):
        if not usable:
            make_venv(PROJECT / ".venv")
        state.unlink(missing_ok=True)
        run(uv(), "pip", "sync", "--require-hashes", "--python", python, *locks, log="venv", cwd=PROJECT)
        state.write_text("\n".join(wanted))


def make_venv(folder: Path) -> None:
    """A new virtual environment of the cluster's Python, or of this one."""
    try:
        run(uv(), "venv", "--clear", "--python", PYTHON, folder, log="python")
    except InstallError:
        say(f"No Python {PYTHON} to be had: using {platform.python_version()}; `connect` will want {PYTHON}")
        run(uv(), "venv", "--clear", "--python", sys.executable, folder, log="python")


def bench_venv() -> Path:
    """Where Ansible is: apart from .venv, whose packages are the program's."""
    return CACHE / "bench" / digest(BENCH)


def uv() -> str:
    """PATH's uv, or one of our own."""
    lock = PROJECT / "tools" / "uv.txt"
    folder = CACHE / "uv" / digest(lock)
    ours = folder / "bin" / "uv"
    if not which("uv") and not ours.exists():
        if not importlib.util.find_spec("ensurepip"):
            install_packages({"ensurepip": "python3-venv"}, "to install Python packages")
        with phase("Installing uv, which installs Python packages"):
            run(sys.executable, "-m", "venv", "--clear", folder, log="uv")
            run(folder / "bin" / "pip", "install", "--require-hashes", "-r", lock, log="uv")
    return which("uv") or str(ours)


# Packages and tools


def install_packages(wanted: dict[str, str], why: str) -> None:
    missing = [package for command, package in wanted.items() if not which(command)]
    if not missing or sys.platform != "linux":
        return
    names = " ".join(missing)
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    if not which("apt-get") or (sudo and (not which("sudo") or subprocess.run(["sudo", "-v"]).returncode)):
        raise InstallError(f"{names}: needed {why}; install them as root: apt-get install {names}")
    with phase(f"Installing Debian packages {why}: {names}"):
        # A package's service must not start, now or at the next boot: policy-rc.d refuses the first.
        script = """
            policy=/usr/sbin/policy-rc.d
            if [ ! -e "$policy" ]; then
                trap 'rm -f "$policy"' EXIT
                trap 'exit 130' INT TERM
                printf '#!/bin/sh\\nexit 101\\n' >"$policy"
                chmod +x "$policy"
            fi
            export DEBIAN_FRONTEND=noninteractive
            services=$1
            shift
            apt-get update && apt-get install --yes --no-install-recommends "$@" || exit
            for service in $services; do
                systemctl disable "$service" || true
            done
        """
        services = " ".join(service for package in missing for service in SERVICES.get(package, ()))
        run(*sudo, "sh", "-c", script, "sh", services, *missing, log="packages")


def actionlint() -> str | None:
    """The one that we built, or PATH's."""
    return which(str(CACHE / "actionlint" / ACTIONLINT / "actionlint")) or which("actionlint")


def install_actionlint() -> None:
    """Builds it into the cache; without Go, `make lint` says that it does not check the workflows."""
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
