#!/bin/sh
# The packages of the lock, and no others but EXTRA, are installed in /opt/dask/environment.
#   EXTRA      further requirements, one a line, which may not change what the lock pins
#   JUPYTER    yes: also what Jupyter needs
# Nothing is done where they are there already: a container that restarts finds what its pod installed.
set -eu

files=/etc/dask-environment
environment=/opt/dask/environment
locks=$files/environment.lock
[ -z "$JUPYTER" ] || locks="$locks $files/jupyter.lock"

uv() { /opt/dask/uv/bin/uv --quiet --no-progress "$@"; }

requirements() { for each in $locks; do printf ' --requirement %s' "$each"; done; }

main() {
  [ ! -e /opt/dask/complete ] || return 0
  export UV_CACHE_DIR=/opt/dask/cache UV_PYTHON_DOWNLOADS=never PIP_DISABLE_PIP_VERSION_CHECK=1
  rm -rf /opt/dask/uv
  python3 -m pip install --quiet --no-cache-dir --no-compile --require-hashes --requirement $files/uv.lock \
    --target /opt/dask/uv
  uv venv --clear --python "$(command -v python3)" $environment
  # shellcheck disable=SC2046  # words
  uv pip install --python $environment/bin/python --require-hashes --no-deps $(requirements)
  if [ -n "$EXTRA" ]; then
    printf '%s\n' "$EXTRA" >/opt/dask/extra.txt
    uv pip install --python $environment/bin/python --constraint $files/environment.lock \
      --requirement /opt/dask/extra.txt
  fi
  # The containers cannot write here. So what Dask imports at its start is compiled now, by importing it.
  $environment/bin/python -c 'import distributed.cli.dask_scheduler, distributed.cli.dask_worker, dask.dataframe' || true
  rm -rf /opt/dask/cache /opt/dask/uv
  touch /opt/dask/complete
}

main "$@"
