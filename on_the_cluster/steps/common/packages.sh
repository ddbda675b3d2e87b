# uv installs Python packages into ENVIRONMENT. UV_BIN is its path; SOURCE, PYTHON and UV_ENV are as in the step
# `environment`.
# shellcheck shell=bash

files=        # the folder with the lock, and with wheels: all if SOURCE is wheelhouse, else those that no index has
UV_LIMIT=1800 # timeout in seconds for each run of uv
UV_SILENCE=30 # seconds without data from a package index before uv retries

# With SOURCE=index, uv reads the package index from UV_ENV or from the machine's /etc/uv/uv.toml. Every user can read a
# process's arguments, but only root the variables of uv. Proxies in UV_ENV replace those of the machine.
uv() {
  local configured=(UV_SYSTEM_CERTS=1) status=0 through=with_proxies # on a machine without certificates uv fails, even if it downloads nothing
  [ "$SOURCE" = index ] || configured=(UV_NO_CONFIG=1)
  [[ ${UV_ENV,,} != *_proxy=* ]] || through=
  (
    eval "$UV_ENV"
    $through timeout $UV_LIMIT env "${configured[@]}" UV_CACHE_DIR=$OPT/cache UV_PYTHON_INSTALL_DIR=$OPT/python UV_NO_PROGRESS=1 \
      UV_HTTP_TIMEOUT=$UV_SILENCE "$UV_BIN" "$@"
  ) || status=$?
  [ $status != 124 ] || note "uv timed out after $UV_LIMIT s on $(hostname)"
  return $status
}

# sync_packages [OPTION] LOCK...: install exactly the packages of the locks, and print what uv says. Only wheels, because
# building a source package would run its code as root. uv verifies a wheel's hash while it unpacks it, so wheels need
# not be copied first.
sync_packages() {
  local wheels=() output
  [ "$SOURCE" = index ] || wheels=(--no-index)
  [ ! -d "$files/wheels" ] || wheels+=(--find-links "$files/wheels")
  output=$(uv pip sync "$@" --no-build --require-hashes "${wheels[@]}" --python "$ENVIRONMENT/bin/python" 2>&1) ||
    explain "$output"
  [ -z "$output" ] || printf '%s\n' "$output"
}

# explain OUTPUT: end the step with the reason why uv failed.
explain() {
  local secret="pulumi config set --secret --path 'dask:secretEnv"
  case $1 in
    *'lack of valid authentication credentials'*)
      fatal "the package index rejects the user name or the password; correct them with $secret.UV_DEFAULT_INDEX'," \
        "or in this machine's /etc/uv/uv.toml"
      ;;
    *'proxy authorization required'*)
      fatal "the proxy rejects the user name or the password; correct them with $secret.HTTPS_PROXY'"
      ;;
    *UnknownIssuer*)
      fatal "an unknown authority signed the certificate of the package index or of a proxy; add the authority's" \
        "certificate as environment.authority"
      ;;
    *) fatal "uv could not install the lock's packages: $1" ;;
  esac
}

# changing_packages LOCK...: print the installed packages that `sync_packages` would replace or remove.
changing_packages() {
  sync_packages --dry-run "$@" | sed -n 's/^ [-~] \([^=@ ]*\).*/\1/p'
}

# An archive's environment may contain more than uv knows.
has_python() {
  [ ! -e "$ENVIRONMENT/.archive" ] && [ "$("$ENVIRONMENT/bin/python" -I -c "$version" 2>/dev/null)" = "$PYTHON" ]
}

version='import sys; print("%d.%d" % sys.version_info[:2])'
