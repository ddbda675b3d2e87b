"""Images and wheels for pods, which have no registry and no package index."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from daskstack.engine import PROJECT, digest
from on_this_computer.send_environment import UV, collect
from rehearsal.kubernetes.network import INNER
from rehearsal.programs import kubernetes_programs
from settings import LOCAL_RELEASES, lock
from tools.running import CACHE, InstallError, made_whole, one_at_a_time, phase, run

PAUSE = "registry.k8s.io/pause:3.10"
INSTALLED = "dask:installed"  # the image that already contains all packages
INSTALL = PROJECT / "charts" / "dask" / "files" / "install.sh"
ENVIRONMENT, JUPYTER = PROJECT / "environment.lock", PROJECT / "charts" / "jupyter.lock"
ML = PROJECT / "environments" / "ml.lock"  # has all packages of ENVIRONMENT, in the same versions
INDEX = f"http://{INNER}:8080/"
# Parts of the machines' system that a slim image does not need or does not have.
LEFT_OUT = ["boot", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/lib/python3*/EXTERNALLY-MANAGED"]
# The system packages that pods can install, with their files.
SYSTEM = {"libgomp1": "usr/lib/*/libgomp.so*", "openssh-sftp-server": "usr/lib/openssh/sftp-server"}
LEFT_OUT += [*SYSTEM.values(), "etc/apt/sources.list*"]
PIP = "#!/usr/bin/python3\nfrom pip._internal.cli.main import main\n\nraise SystemExit(main())\n"
# Runs the chart's install.sh in the machines' system, with wheels from a folder on this computer.
MAKE_ENVIRONMENT = """
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
    mount --bind "$3" "$2/root/mnt"
    mount --bind /dev "$2/root/dev"
    mount -t proc proc "$2/root/proc"
    unset "${!PIP@}" "${!UV@}"
    export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/bin HOME=/tmp EXTRA= JUPYTER=yes SYSTEM=
    exec chroot "$2/root" sh /etc/dask-environment/install.sh
"""
IMPORT = """
    containerd --config "$1" &
    for attempt in $(seq 300); do
        ctr --address "$2" version >/dev/null 2>&1 && break
        sleep 0.1
    done
    address=$2
    shift 2
    for archive in "$@"; do
        ctr --address "$address" --namespace k8s.io images import "$archive" || exit
    done
    kill %1
    wait %1
"""


def template(python: str, packages: Path | None) -> Path:
    """A folder of containerd with the images, from the cache or created there.

    The images are Python and the pause container (15 s). With `packages`, a folder of wheels, there is also
    INSTALLED, which contains Python and all packages of a release's pods.
    """
    system = machine_image(python)
    programs = kubernetes_programs()
    parts = [Path(__file__), INNER, str(system), str(programs), python]
    parts += [INSTALL, str(packages)] if packages else []
    folder = CACHE / "kubernetes" / "images" / digest(*parts)
    if not folder.exists():
        with one_at_a_time():
            if not folder.exists():
                with phase(f"Creating images with Python {python} for pods (once)"), made_whole(folder) as new:
                    fill(new, system, programs / "pause", python, packages)
    return folder


def machine_image(python: str) -> Path:
    """The image of local machines, which contains this Python version."""
    if python not in LOCAL_RELEASES:
        raise InstallError(f"no image has Python {python}; set --python to one of {', '.join(LOCAL_RELEASES)}")
    script = PROJECT / "on_this_computer" / "local_machines" / "image.sh"
    environ = {**os.environ, "CACHE": str(CACHE), "RELEASE": LOCAL_RELEASES[python]}
    done = subprocess.run(["bash", script], env=environ, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InstallError("could not build the machines' image; the cause is above")
    return Path(done.stdout.strip())


def fill(new: Path, system: Path, pause: Path, python: str, packages: Path | None) -> None:
    """Create images, and import them with a separate containerd whose folder is `new`."""
    work = new.parent / "work"
    work.mkdir()
    archives = [make_pause(work, pause), make_python(work, system, python, packages)]
    config = work / "containerd.toml"
    config.write_text(
        f'version = 2\nroot = "{new}"\nstate = "{work}/state"\n[grpc]\naddress = "{work}/socket"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
    )
    space = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    run(*space, "bash", "-c", IMPORT, "sh", config, work / "socket", *archives, log="kubernetes-images", timeout=600)
    shutil.rmtree(work)


def make_pause(work: Path, program: Path) -> Path:
    layer = work / "pause.layer"
    with tarfile.open(layer, "w") as tar:
        tar.add(program, "pause")
    return archive(work / "pause.tar", {PAUSE: [layer]}, {"Entrypoint": ["/pause"], "User": "65535:65535"})


def make_python(work: Path, system: Path, python: str, packages: Path | None) -> Path:
    layer = work / "python.layer"
    excluded = [f"--exclude=./{path}" for path in LEFT_OUT]
    run("tar", "--create", "--file", layer, "--numeric-owner", *excluded, "--directory", system, ".", log="layer")
    with tarfile.open(layer, "a") as tar:
        for path, content in files(system, python, INDEX):
            member = tarfile.TarInfo(f"./{path}")
            member.size, member.mode = len(content), mode(path)
            tar.addfile(member, BytesIO(content))
        for name in ("python", "python3"):
            link = tarfile.TarInfo(f"./usr/local/bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, f"/usr/bin/python{python}"
            tar.addfile(link)
    layers = {f"docker.io/library/python:{python}-slim": [layer]}
    if packages:
        layers[f"docker.io/library/{INSTALLED}"] = [layer, make_environment(work, system, python, packages)]
    settings = {
        "Cmd": ["python3"],
        "Env": ["PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
    }
    return archive(work / "python.tar", layers, settings)


def files(system: Path, python: str, index: str) -> Iterator[tuple[str, bytes]]:
    """Files that pods have in addition to the machines' system. `index` serves their wheels."""
    # Pods can install only the node's packages.
    yield "etc/apt/sources.list", f"deb [trusted=yes] {index} ./\n".encode()
    known = (system / "var/lib/dpkg/status").read_text().split("\n\n")
    missing = tuple(f"Package: {name}\n" for name in (*SYSTEM, "openssh-server"))  # the last one needs another
    known = [each for each in known if not each.startswith(missing)]
    yield "var/lib/dpkg/status", "\n\n".join(known).encode()
    yield "etc/uv/uv.toml", f'no-index = true\nfind-links = ["{index}"]\n'.encode()
    trusted = f"[global]\nno-index = true\nfind-links = {index}\ntrusted-host = {INNER}\n"
    yield "etc/pip.conf", trusted.encode()
    yield "usr/local/bin/pip", PIP.encode()
    # Debian's pip only works in virtual environments.
    with zipfile.ZipFile(next((system / "usr/share/python-wheels").glob("pip-*.whl"))) as wheel:
        for path in wheel.namelist():
            yield f"usr/local/lib/python{python}/dist-packages/{path}", wheel.read(path)


def mode(path: str) -> int:
    return 0o755 if "/bin/" in path else 0o644


def make_environment(work: Path, system: Path, python: str, packages: Path) -> Path:
    """A layer with the packages of ml.lock and jupyter.lock, installed in the same way as by the chart."""
    place, layer = work / "environment", work / "environment.layer"
    upper = place / "upper"
    for folder in (upper, place / "work", place / "root"):
        folder.mkdir(parents=True)
    etc = "etc/dask-environment"
    own = {f"{etc}/environment.lock": requirements(ML, python), f"{etc}/jupyter.lock": requirements(JUPYTER, python)}
    own |= {f"{etc}/uv.lock": UV.read_bytes(), f"{etc}/install.sh": INSTALL.read_bytes()}
    for path, content in [*files(system, python, "/mnt"), *own.items()]:
        (upper / path).parent.mkdir(parents=True, exist_ok=True)
        (upper / path).write_bytes(content)
    words = ["bash", "-ec", MAKE_ENVIRONMENT, "sh", system, place, packages]
    run("unshare", "--mount", *words, log="environment", timeout=600)
    run("tar", "--create", "--file", layer, "--numeric-owner", "--directory", upper, "./opt/dask", log="layer")
    # An image with all packages also contains these.
    more = [path.relative_to(system) for pattern in SYSTEM.values() for path in system.glob(pattern)]
    run("tar", "--append", "--file", layer, "--numeric-owner", "--directory", system, *more, log="layer")
    return layer


def requirements(path: Path, python: str) -> bytes:
    return "\n".join(lock.read(path, python, dask=path == ML).requirements).encode()


def archive(path: Path, images: dict[str, list[Path]], settings: dict) -> Path:
    """Write images, given by name and layers, in the format of `docker save`."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    layers = {layer.name: layer for each in images.values() for layer in each}
    sums = {name: f"sha256:{hash_of(layer)}" for name, layer in layers.items()}
    manifest, described = [], {}
    for number, (name, own) in enumerate(images.items()):
        names = [layer.name for layer in own]
        root = {"type": "layers", "diff_ids": [sums[each] for each in names]}
        described[f"{number}.json"] = {"architecture": architecture, "os": "linux", "config": settings, "rootfs": root}
        manifest.append({"Config": f"{number}.json", "RepoTags": [name], "Layers": names})
    with tarfile.open(path, "w") as tar:
        for file, content in {"manifest.json": manifest, **described}.items():
            member = tarfile.TarInfo(file)
            encoded = json.dumps(content).encode()
            member.size = len(encoded)
            tar.addfile(member, BytesIO(encoded))
        for name, layer in layers.items():
            tar.add(layer, name)
            layer.unlink()
    return path


def hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wheels(locks: list[Path], python: str) -> Path:
    """A folder with the wheels of environment.lock, of these locks and of uv, and with a Debian repository of SYSTEM.

    It is from the cache or created there.
    """
    locks, system = [ENVIRONMENT, *locks], machine_image(python)
    folder = CACHE / "kubernetes" / "wheels" / digest(Path(__file__), *locks, UV, python, str(system))
    if not folder.exists():
        with one_at_a_time(), phase("Collecting packages for pods"), made_whole(folder) as new:
            for path in locks:
                for wheel in collect(path, python, "wheelhouse").rglob("*.whl"):
                    shutil.copy(wheel, new)
            collect_system(new, system)
    return folder


def collect_system(new: Path, system: Path) -> None:
    """Downloads SYSTEM for this system, and writes the list from which apt installs it."""
    work = new.parent / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (work / folder).mkdir(parents=True)
    own = {"State": work, "State::status": system / "var/lib/dpkg/status", "Cache": work, "Etc": system / "etc/apt"}
    options = [word for key, value in own.items() for word in ("--option", f"Dir::{key}={value}")]
    options += ["--option", "APT::Sandbox::User=root"]
    run("apt-get", *options, "update", log="apt", timeout=300)
    run("apt-get", *options, "--reinstall", "--download-only", "--yes", "install", *SYSTEM, log="apt", timeout=300)
    with (new / "Packages").open("w") as packages:
        for package in (work / "archives").glob("*.deb"):
            shutil.copy(package, new)
            fields = subprocess.run(["dpkg-deb", "--field", package], capture_output=True, text=True, check=True)
            size = package.stat().st_size
            packages.write(f"{fields.stdout}Filename: ./{package.name}\nSize: {size}\nSHA256: {hash_of(package)}\n\n")
    shutil.rmtree(work)
