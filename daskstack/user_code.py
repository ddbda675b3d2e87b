"""Modules of a folder on this computer, as importable modules on the scheduler and all workers."""

import io
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import distributed
from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

LIMIT = 20 * 2**20  # bytes
PAUSE = 0.5  # seconds between two looks at the folder


class Code:
    """The modules of a folder: its Python files, and all files of its packages.

    Raises ValueError if the path is not a folder, or if the modules are larger than LIMIT.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().resolve()
        if not self.folder.is_dir():
            raise ValueError(f"code={str(folder)!r} is not a folder; name the folder that contains your modules")
        self._shipped: dict[Path, tuple[int, int]] = {}
        self._looked = 0.0

    def ship(self, client: distributed.Client) -> None:
        """Sends the modules if they have changed since the last time."""
        if time.monotonic() - self._looked < PAUSE:
            return
        found = {path: (stat.st_mtime_ns, stat.st_size) for path, stat in self._files()}
        self._looked = time.monotonic()
        if found == self._shipped:
            return
        for plugin in plugins(self.archive()):
            client.register_plugin(plugin)
        self._shipped = found

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for top, folders, names in os.walk(self.folder):
            here = Path(top)
            package = "__init__.py" in names and here != self.folder
            folders[:] = [
                each
                for each in folders
                if not each.startswith((".", "__pycache__")) and not (here / each / "pyvenv.cfg").exists()
            ]
            for name in names:
                if name.endswith(".py") or (package and not name.startswith(".")):
                    yield here / name, (here / name).stat()

    def archive(self) -> bytes:
        """The modules as a ZIP archive. Raises ValueError if they are larger than LIMIT."""
        files = list(self._files())
        if (size := sum(stat.st_size for _, stat in files)) > LIMIT:
            raise ValueError(
                f"the modules in {self.folder} have {size / 2**20:.0f} MB, the limit is {LIMIT >> 20} MB; put data into"
                " the shared directory, and add packages to environment.in"
            )
        with io.BytesIO() as buffer:
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
                for path, _ in files:
                    archive.write(path, path.relative_to(self.folder))
            return buffer.getvalue()


def plugins(archive: bytes) -> tuple[WorkerPlugin, SchedulerPlugin]:
    """Plugins that make the modules in the archive importable.

    The cluster does not have this package, so the classes are defined here: then they are pickled by value. A
    plugin replaces the former one, whose modules are imported again when tasks next use them.
    """

    def add(archive: bytes, local_directory: str) -> str:
        import importlib
        import io
        import sys
        import tempfile
        import zipfile

        folder = tempfile.mkdtemp(prefix="code-", dir=local_directory)
        zipfile.ZipFile(io.BytesIO(archive)).extractall(folder)
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        return folder

    def remove(folder: str) -> None:
        import shutil
        import sys

        sys.path[:] = [path for path in sys.path if path != folder]
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(f"{folder}/"):
                del sys.modules[name]
        shutil.rmtree(folder, ignore_errors=True)

    class WorkerCode(WorkerPlugin):
        name = "daskstack-code"

        def setup(self, worker: distributed.Worker) -> None:
            self.folder = add(archive, worker.local_directory)

        def teardown(self, worker: distributed.Worker) -> None:
            remove(self.folder)

    class SchedulerCode(SchedulerPlugin):
        name = "daskstack-code"

        async def start(self, scheduler: distributed.Scheduler) -> None:
            if former := scheduler.plugins.pop(self.name, None):
                remove(former.folder)  # ty: ignore[missing-attribute]
            self.folder = add(archive, scheduler.local_directory)

    return WorkerCode(), SchedulerCode()
