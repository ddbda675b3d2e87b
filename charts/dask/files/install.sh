#!/bin/sh
# Installs exactly the packages of the lock and EXTRA into /opt/dask/environment.
#   EXTRA      additional requirements, one per line, which must not change the lock's versions
#   JUPYTER    yes: also install Jupyter's packages
# If a container restarts, its pod already has the packages, and this script does nothing.
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
  # shellcheck disable=SC2046  # split into words
  uv pip install --python $environment/bin/python --require-hashes --no-deps $(requirements)
  if [ -n "$EXTRA" ]; then
    printf '%s\n' "$EXTRA" >/opt/dask/extra.txt
    uv pip install --python $environment/bin/python --constraint $files/environment.lock \
      --requirement /opt/dask/extra.txt
  fi
  # The containers cannot write here, so import what Dask needs at startup now, to compile it.
  $environment/bin/python -c 'import distributed.cli.dask_scheduler, distributed.cli.dask_worker, dask.dataframe' || true
  rm -rf /opt/dask/cache /opt/dask/uv
  touch /opt/dask/complete
}

main "$@"
