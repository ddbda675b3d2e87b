#!/bin/sh
# Installs exactly the packages of the lock and EXTRA into /opt/dask/environment, and SYSTEM into /opt/dask/system.
#   EXTRA      additional requirements, one per line, which must not change the lock's versions
#   JUPYTER    yes: also install Jupyter's packages
#   SYSTEM     Debian packages that the image may lack, separated by spaces
#   SERVER     the host that sends the same packages to this pod, if it can; see share.py
# /etc/dask-wheels/wheels.zip, if it exists, contains packages of the lock that no index has.
# If a container restarts, its pod already has the packages, and this script does nothing.
set -eu

files=/etc/dask-environment
environment=/opt/dask/environment
debian=/opt/dask/system
locks=$files/environment.lock
[ -z "$JUPYTER" ] || locks="$locks $files/jupyter.lock"

uv() { /opt/dask/uv/bin/uv --quiet --no-progress "$@"; }

requirements() { for each in $locks; do printf ' --requirement %s' "$each"; done; }

# missing_packages: print the packages of SYSTEM that the image lacks.
missing_packages() {
  for package in $SYSTEM; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    # libgomp1 is for LightGBM and similar libraries, which most environments do not have.
    if [ "$status" != installed ] &&
      { [ "$package" != libgomp1 ] || grep --recursive --quiet --fixed-strings libgomp.so.1 $environment/lib; }; then
      echo "$package"
    fi
  done
}

# apt-get with folders that need no root. It verifies signatures with the image's keys.
apt() {
  mkdir -p $debian/apt/lists/partial $debian/apt/archives/partial
  timeout 240 apt-get --quiet --quiet --option Dir::State=$debian/apt --option Dir::Cache=$debian/apt \
    --option Dir::State::status=/var/lib/dpkg/status --option Debug::NoLocking=yes --option APT::Update::Error-Mode=any \
    --option Acquire::Retries=1 --option Acquire::http::Timeout=15 "$@"
}

# Unpacks Debian packages and those that they depend on, without running their scripts. The containers'
# LD_LIBRARY_PATH is /opt/dask/libraries.
install_system() {
  # shellcheck disable=SC2046 # split into words
  set -- $(missing_packages)
  [ $# -gt 0 ] || return 0
  export http_proxy="${http_proxy:-${HTTP_PROXY:-}}" https_proxy="${https_proxy:-${HTTPS_PROXY:-}}"
  if apt update && apt --yes --no-install-recommends --download-only install "$@"; then
    for package in "$debian"/apt/archives/*.deb; do
      dpkg-deb --extract "$package" $debian
    done
    mkdir -p /opt/dask/libraries
    find $debian -maxdepth 4 -name '*.so*' -exec ln --symbolic --force {} /opt/dask/libraries \;
  else
    echo "error: cannot download the system packages $*; check that pods reach a Debian mirror, or write an image" \
      "that contains them" >&2
    # Pods work without these: the check tells whether packages that need libgomp1 can be imported, and `daskstack put`
    # that openssh-sftp-server is missing.
    for package in "$@"; do
      case $package in libgomp1 | openssh-sftp-server) ;; *) exit 1 ;; esac
    done
  fi
  rm -rf $debian/apt
}

main() {
  [ ! -e /opt/dask/complete ] || return 0
  if [ -n "${SERVER:-}" ] && python3 $files/share.py fetch; then
    touch /opt/dask/complete
    return 0
  fi
  rm -rf $environment $debian /opt/dask/libraries
  export UV_CACHE_DIR=/opt/dask/cache UV_PYTHON_DOWNLOADS=never PIP_DISABLE_PIP_VERSION_CHECK=1
  if [ -e $files/authority.crt ]; then
    cat /etc/ssl/certs/ca-certificates.crt $files/authority.crt >/opt/dask/certificates.crt
    export SSL_CERT_FILE=/opt/dask/certificates.crt PIP_CERT=/opt/dask/certificates.crt
  fi
  if [ -e /etc/dask-wheels/wheels.zip ]; then
    python3 -m zipfile --extract /etc/dask-wheels/wheels.zip /opt/dask/wheels
    export UV_FIND_LINKS="/opt/dask/wheels${UV_FIND_LINKS:+,$UV_FIND_LINKS}"
  fi
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
  install_system
  # The containers cannot write here, so import what Dask needs at startup now, to compile it.
  $environment/bin/python -c 'import distributed.cli.dask_scheduler, distributed.cli.dask_worker, dask.dataframe' || true
  rm -rf /opt/dask/cache /opt/dask/uv /opt/dask/wheels
  touch /opt/dask/complete
}

main "$@"
