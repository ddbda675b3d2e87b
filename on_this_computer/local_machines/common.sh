# Shared by image.sh, network.sh and machine.sh: messages, prerequisites, and becoming root.
# shellcheck shell=bash

# debootstrap and ip may be in folders that the user's PATH does not contain.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s\n' "$*" >&2; }

fatal() {
  say "$(basename "$0"): $*"
  exit 1
}

# Fail because this computer does not meet a requirement.
cannot() {
  fatal "this computer cannot run local machines: $*" $'\n' \
    "Fix that, use another Linux computer or VM," $'\n' \
    "or use machines that you already have: 'source: existing' in the stack's settings."
}

# become_root "VARIABLE ..." ARGUMENT...
# Unless this is root, run the script again as root with these variables and no others.
become_root() {
  local variables=$1 variable assignments=()
  shift
  [[ $(uname -s) == Linux ]] || cannot "they require Linux, but it runs $(uname -s)."
  ((EUID != 0)) || return 0
  sudo -n true 2>/dev/null || cannot "you are not root, and sudo requires a password."
  for variable in $variables; do
    [[ ! -v $variable ]] || assignments+=("$variable=${!variable}")
  done
  exec sudo -n env -i "PATH=$PATH" "${assignments[@]}" bash "$0" "$@"
}

# need PROGRAM=DEBIAN_PACKAGE...
need() {
  local pair missing=()
  for pair in "$@"; do
    command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
  done
  ((${#missing[@]} == 0)) || cannot "programs are missing (Debian and Ubuntu: apt-get install ${missing[*]})."
}
