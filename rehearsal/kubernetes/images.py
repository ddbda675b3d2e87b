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
from settings import lock
from tools.running import CACHE, InstallError, made_whole, one_at_a_time, phase, run

PAUSE = "registry.k8s.io/pause:3.10"
INSTALLED = "dask:installed"  # the image that already contains all packages
INSTALL = PROJECT / "charts" / "dask" / "files" / "install.sh"
ENVIRONMENT, JUPYTER = PROJECT / "environment.lock", PROJECT / "charts" / "jupyter.lock"
INDEX = f"http://{INNER}:8080/"
# Parts of the machines' system that a slim image does not need.
LEFT_OUT = ["boot", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/lib/python3*/EXTERNALLY-MANAGED"]
PIP = "#!/usr/bin/python3\nfrom pip._internal.cli.main import main\n\nraise SystemExit(main())\n"
# Runs the chart's install.sh in the machines' system, with wheels from a folder on this computer.
MAKE_ENVIRONMENT = """
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
    mount --bind "$3" "$2/root/mnt"
    mount --bind /dev "$2/root/dev"
    mount -t proc proc "$2/root/proc"
    unset "${!PIP@}" "${!UV@}"
    export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/bin HOME=/tmp EXTRA= JUPYTER=yes
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
    system = machine_image()
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


def machine_image() -> Path:
    """The image of local machines, which contains Python."""
    script = PROJECT / "on_this_computer" / "local_machines" / "image.sh"
    done = subprocess.run(["bash", script], env={**os.environ, "CACHE": str(CACHE)}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InstallError("could not build the machines' image; the cause is above")
    return Path(done.stdout.strip())


def fill(new: Path, system: Path, pause: Path, python: str, packages: Path | None) -> None:
    """Create images, and import them with a separate containerd whose folder is `new`."""
    if not (system / "usr" / "bin" / f"python{python}").exists():
        raise InstallError(f"{system} has no Python {python}; set --python to the version that it has")
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
    # Pods can install only the node's wheels.
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
    """A layer with the packages of environment.lock and jupyter.lock, installed in the same way as by the chart."""
    place, layer = work / "environment", work / "environment.layer"
    upper = place / "upper"
    for folder in (upper, place / "work", place / "root"):
        folder.mkdir(parents=True)
    etc = "etc/dask-environment"
    own = {f"{etc}/{path.name}": requirements(path, python) for path in (ENVIRONMENT, JUPYTER)}
    own |= {f"{etc}/uv.lock": UV.read_bytes(), f"{etc}/install.sh": INSTALL.read_bytes()}
    for path, content in [*files(system, python, "/mnt"), *own.items()]:
        (upper / path).parent.mkdir(parents=True, exist_ok=True)
        (upper / path).write_bytes(content)
    words = ["bash", "-ec", MAKE_ENVIRONMENT, "sh", system, place, packages]
    run("unshare", "--mount", *words, log="environment", timeout=600)
    run("tar", "--create", "--file", layer, "--numeric-owner", "--directory", upper, "./opt/dask", log="layer")
    return layer


def requirements(path: Path, python: str) -> bytes:
    return "\n".join(lock.read(path, python, dask=path == ENVIRONMENT).requirements).encode()


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
    """A folder with the wheels of environment.lock, of these locks and of uv, from the cache or created there."""
    locks = [ENVIRONMENT, *locks]
    folder = CACHE / "kubernetes" / "wheels" / digest(*locks, UV, python)
    if not folder.exists():
        with one_at_a_time(), phase("Collecting wheels for pods"), made_whole(folder) as new:
            for path in locks:
                for wheel in collect(path, python, "wheelhouse").rglob("*.whl"):
                    shutil.copy(wheel, new)
    return folder
