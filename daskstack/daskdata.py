"""The shared directory as a file system for fsspec: `daskdata://x.csv` names the same file everywhere.

In the cluster's processes the variable DASKSTACK_DATA has the directory's path; elsewhere the files are reached over
SSH. Machines and pods get a copy of this module, so its import needs only fsspec.
"""

import os
from functools import partial

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem


class DaskData(DirFileSystem):
    """Paths are relative to the shared directory. `stack` is the stack of the last `connect` by default."""

    protocol = "daskdata"
    cachable = False  # the default stack can change

    def __init__(self, stack: str | None = None, **options):
        path = os.environ.get("DASKSTACK_DATA")
        if path:
            files = LocalFileSystem()
        else:
            try:
                from daskstack import sftp
            except ModuleNotFoundError as error:
                text = f"daskdata:// outside of the cluster needs {error.name}, which the cluster's lock does not have"
                raise ModuleNotFoundError(f"{text}: run `pip install {error.name}` in this environment") from None
            path, files = sftp.files(stack)
        super().__init__(path=path, fs=files, **options)

    def __reduce__(self):
        # Dask pickles a file system for use on the cluster.
        return partial(fsspec.filesystem, "dir", path=self.path, target_protocol="file"), ()
