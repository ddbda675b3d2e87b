"""What pods run without a registry: images, and a folder of wheels."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

from daskstack.engine import PROJECT, digest, kubernetes_programs
from on_this_computer.send_environment import UV, collect
from rehearsal.kubernetes.network import INNER
from tools.running import CACHE, InstallError, made_whole, one_at_a_time, phase, run

PAUSE = "registry.k8s.io/pause:3.10"
INDEX = f"http://{INNER}:8080/"
# What a machine's system has and a slim image has not.
LEFT_OUT = ["boot", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/lib/python3*/EXTERNALLY-MANAGED"]
# Beside the official image's own way to Python: pods have no other packages than the node's wheels.
FILES = {
    "etc/uv/uv.toml": f'no-index = true\nfind-links = ["{INDEX}"]\n',
    "etc/pip.conf": f"[global]\nno-index = true\nfind-links = {INDEX}\ntrusted-host = {INNER}\n",
    "usr/local/bin/pip": "#!/usr/bin/python3\nfrom pip._internal.cli.main import main\n\nraise SystemExit(main())\n",
}
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


def template(python: str) -> Path:
    """A containerd's folder with both images in it, from the cache or made there (15 s)."""
    system = machine_image()
    programs = kubernetes_programs()
    folder = CACHE / "kubernetes" / "images" / digest(Path(__file__), INNER, str(system), str(programs), python)
    if not folder.exists():
        with one_at_a_time():
            if not folder.exists():
                with phase(f"Making the image of Python {python} for pods (once)"), made_whole(folder) as new:
                    fill(new, system, programs / "pause", python)
    return folder


def machine_image() -> Path:
    """The system of local machines, which has Python."""
    script = PROJECT / "on_this_computer" / "local_machines" / "image.sh"
    done = subprocess.run(["bash", script], env={**os.environ, "CACHE": str(CACHE)}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InstallError("the machines' system could not be built; why is told above")
    return Path(done.stdout.strip())


def fill(new: Path, system: Path, pause: Path, python: str) -> None:
    """Makes images, and imports them with a containerd of its own whose folder is `new`."""
    if not (system / "usr" / "bin" / f"python{python}").exists():
        raise InstallError(f"there is no Python {python} in {system}: give --python the one that it has")
    work = new.parent / "work"
    work.mkdir()
    archives = [make_pause(work, pause), make_python(work, system, python)]
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
    return archive(work / "pause.tar", PAUSE, layer, {"Entrypoint": ["/pause"], "User": "65535:65535"})


def make_python(work: Path, system: Path, python: str) -> Path:
    layer = work / "python.layer"
    excluded = [f"--exclude=./{path}" for path in LEFT_OUT]
    run("tar", "--create", "--file", layer, "--numeric-owner", *excluded, "--directory", system, ".", log="layer")
    with tarfile.open(layer, "a") as tar:
        for path, content in FILES.items():
            add(tar, path, content.encode())
        for name in ("python", "python3"):
            link = tarfile.TarInfo(f"./usr/local/bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, f"/usr/bin/python{python}"
            tar.addfile(link)
        # Debian has pip for virtual environments alone.
        with zipfile.ZipFile(next((system / "usr/share/python-wheels").glob("pip-*.whl"))) as wheel:
            for path in wheel.namelist():
                add(tar, f"usr/local/lib/python{python}/dist-packages/{path}", wheel.read(path))
    settings = {
        "Cmd": ["python3"],
        "Env": ["PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
    }
    return archive(work / "python.tar", f"docker.io/library/python:{python}-slim", layer, settings)


def add(tar: tarfile.TarFile, path: str, content: bytes) -> None:
    member = tarfile.TarInfo(f"./{path}")
    member.size, member.mode = len(content), 0o755 if "/bin/" in path else 0o644
    tar.addfile(member, BytesIO(content))


def archive(path: Path, name: str, layer: Path, settings: dict) -> Path:
    """An image of one layer, as `docker save` writes it."""
    with layer.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    layers = {"type": "layers", "diff_ids": [f"sha256:{sha256}"]}
    config = {"architecture": architecture, "os": "linux", "config": settings, "rootfs": layers}
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        for file, content in {"manifest.json": manifest, "config.json": config}.items():
            member = tarfile.TarInfo(file)
            encoded = json.dumps(content).encode()
            member.size = len(encoded)
            tar.addfile(member, BytesIO(encoded))
        tar.add(layer, "layer.tar")
    layer.unlink()
    return path


def wheels(locks: list[Path], python: str) -> Path:
    """A folder with the wheels of the environment's lock, of these locks and of uv, from the cache or made there."""
    locks = [PROJECT / "environment.lock", *locks]
    folder = CACHE / "kubernetes" / "wheels" / digest(*locks, UV, python)
    if not folder.exists():
        with one_at_a_time(), phase("Collecting wheels for pods"), made_whole(folder) as new:
            for lock in locks:
                for wheel in collect(lock, python, "wheelhouse").rglob("*.whl"):
                    shutil.copy(wheel, new)
    return folder
