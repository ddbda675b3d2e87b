# Shared by image.sh, network.sh and machine.sh: messages, and the way to root.
# shellcheck shell=bash

# A login shell's PATH may lack the folders of debootstrap and ip.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s\n' "$*" >&2; }

fatal() {
  say "$(basename "$0"): $*"
  exit 1
}

# The one answer for a computer that cannot run machines of its own.
cannot() {
  fatal "this computer cannot run local machines: $*" $'\n' \
    "Mend that, use a Linux computer or VM that has it," $'\n' \
    "or give machines that you have already: 'source: existing' in the stack's settings."
}

# become_root "VARIABLE ..." ARGUMENT...
# Runs the script again as root, with these variables and no others, where it is not root.
become_root() {
  local variables=$1 variable assignments=()
  shift
  [[ $(uname -s) == Linux ]] || cannot "it runs $(uname -s), and they need Linux."
  ((EUID != 0)) || return 0
  sudo -n true 2>/dev/null || cannot "you are not root, and 'sudo -n' does not work without a password."
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
  ((${#missing[@]} == 0)) || cannot "it lacks programs (Debian and Ubuntu: apt-get install ${missing[*]})."
}
