# Prints every reason why this machine cannot join the cluster, each with its remedy. Changes nothing.
#   FRAME      the line before and after the reasons, because login shells can print text, too
#   ADDRESS    this machine's address in the cluster's network
#   REACHES    addresses of machines that it must reach at SSH_PORT, separated by spaces
#   NOW        seconds since 1970 by the clock of the computer that runs up
#   USERS      users that the steps create on this machine
#   PYTHON, SOURCE, UV_ENV        as in the step `environment`
#   PUBLIC_INDEX                  the package index that uv uses by default
#   DATA_PATH, HOLDS, DEVICE      as in the step `data`
#   and the variables of the step `firewall`
# The steps would find most of these reasons themselves, one after the other, after they have changed other things. Parts
# of the steps `firewall` and `data` precede this file.
# shellcheck shell=bash

# Each reason begins with "- ".
exec 3>&1
tell() { printf -- '- %s\n' "${*//$'\n'/$'\n'  }" >&3; }

fatal() {
  tell "$@"
  exit 1
}

# ask FUNCTION: in a subshell, because it can end with `fatal`.
ask() { ("$@") >/dev/null 2>&1 || true; }

refuse_system() {
  [ -d /run/systemd/system ] || tell "process 1 is $(cat /proc/1/comm); use a machine with systemd"
  [ "$(uname -m)" = x86_64 ] || tell "the processor is $(uname -m), and the cluster needs x86_64; use another machine"
  command -v apt-get >/dev/null || command -v dnf >/dev/null ||
    tell "there is neither apt-get nor dnf; use Debian, Ubuntu, or a relative of Red Hat Enterprise Linux"
}

refuse_space() {
  local folder left
  for folder in /opt /var; do
    left=$(df --output=avail --block-size=1M $folder | tail -n 1 | tr -dc 0-9)
    # A machine of the cluster has the packages.
    [ "$left" -ge 2000 ] || [ -e $OPT/environment ] || tell "the disk of $folder has $left MB left; free 2000 MB"
  done
  left=$(awk '$1 == "MemTotal:" { print int($2 / 1024) }' /proc/meminfo)
  [ "$left" -ge 900 ] || tell "there are $left MB of memory, and Dask needs at least 1 GB; use another machine"
  for folder in /opt /usr; do
    [[ ,$(findmnt -n -o OPTIONS -T $folder), != *,noexec,* ]] ||
      tell "no program can run in $folder, which is mounted with noexec; remove this option of $(findmnt -n -o TARGET -T $folder)"
  done
}

refuse_clock() {
  local difference=$(($(date +%s) - NOW))
  [ ${difference#-} -lt 600 ] ||
    tell "the clock differs from your computer's by ${difference#-} seconds; synchronize it: timedatectl set-ntp true"
}

refuse_python() {
  local python
  [ "$SOURCE" != archive ] || return 0
  python=$(command -v "python$PYTHON") || python=$(command -v python3) || true
  if [ -z "$python" ] || [ "$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$PYTHON" ]; then
    # uv can download one from the index of uv.
    [ "$SOURCE" != wheelhouse ] ||
      tell "there is no Python $PYTHON; install it, or write environment.python and a lock for another version"
  elif ! setpriv --reuid 65534 --regid 65534 --clear-groups sh -c "$python -I -c ''"; then # setpriv itself could run it
    tell "only root can run $(readlink -f "$python"); let every user run it (chmod a+rX), because Dask runs as the user $CLUSTER_USER"
  fi
}

refuse_users() {
  local user
  for user in $USERS; do
    if id "$user"; then
      [[ $(getent passwd "$user" | cut -d: -f6) == $VAR/* ]] ||
        tell "user '$user' already exists and does not belong to this cluster; rename it or use another machine"
    elif getent group "$user"; then
      tell "group '$user' already exists and does not belong to this cluster; rename it or use another machine"
    fi
  done
}

# The step `credentials` overrides the other settings for the users that log in.
refuse_sshd() {
  local settings word user
  grep -qiE '^ *Include +/etc/ssh/sshd_config\.d/' /etc/ssh/sshd_config ||
    tell "/etc/ssh/sshd_config does not include /etc/ssh/sshd_config.d/*.conf; make that Include its first line"
  settings=$(sshd -T -C "user=$CLUSTER_USER,host=$(hostname),addr=$ADDRESS" 2>&1) || {
    tell "sshd rejects its own configuration: $settings"
    return
  }
  sed -n 's/^denyusers //p; s/^denygroups //p' <<<"$settings" | tr ' ' '\n' | while read -r word; do
    for user in $USERS; do
      # shellcheck disable=SC2053 # a pattern
      [[ $user != ${word%@*} || $user == dask-j* ]] || # the users of jobs and notebooks do not log in
        tell "sshd denies SSH to the user $user (DenyUsers or DenyGroups $word); except it there"
    done
  done
  grep -q '^hostkeyalgorithms .*ssh-ed25519-cert-v01@openssh.com' <<<"$settings" ||
    tell "sshd does not show certificates of its host key; add ssh-ed25519-cert-v01@openssh.com to its HostKeyAlgorithms"
}

refuse_network() {
  local address
  for address in $REACHES; do
    { timeout 5 bash -c "exec 4<>/dev/tcp/$address/$SSH_PORT" || echo "$address"; } &
  done | sort | while read -r address; do
    tell "it cannot connect to $address on port $SSH_PORT, where SSH must be reachable for the cluster's machines;" \
      "correct the route, a firewall between them, or the address in the settings"
  done
}

needs_packages() {
  local command commands=(openssl pgrep sshfs mount.fuse3)
  [ "$MANAGE" != yes ] || commands+=(nft firewall-cmd)
  for command in "${commands[@]}"; do command -v "$command" || return 0; done
  return 1
}

# Package managers wait for each other, but not forever.
refuse_held_lock() {
  local pid up started seconds
  needs_packages || return 0
  read -r up _ </proc/uptime
  { find /proc/[0-9]*/fd \( -lname '/var/lib/dpkg/lock*' -o -lname /var/lib/apt/lists/lock \) || true; } |
    cut -d / -f 3 | sort -u | while read -r pid; do
    started=$(sed 's/.*) //' "/proc/$pid/stat" | cut -d ' ' -f 20) || continue
    seconds=$((${up%.*} - started / $(getconf CLK_TCK)))
    [ $seconds -lt $LOCKED ] ||
      tell "process $pid ($(<"/proc/$pid/comm")) has been running for $((seconds / 60)) minutes and" \
        "holds the lock of apt, which has to install packages here; wait for it, or end it if it hangs"
  done
}

# The relatives of Red Hat Enterprise Linux have sshfs in EPEL alone.
refuse_missing_epel() {
  local found
  if command -v sshfs || ! command -v dnf || grep -rqi epel /etc/yum.repos.d; then return; fi
  found=$(with_proxies timeout 30 dnf -q repoquery fuse-sshfs 2>&1) ||
    tell "dnf cannot read the package sources: ${found##*$'\n'}; correct them in /etc/yum.repos.d, or install fuse-sshfs"
  [ -n "$found" ] ||
    tell "no package source has fuse-sshfs, which mounts the shared directory; add EPEL: dnf install epel-release" \
      "(on Red Hat Enterprise Linux itself, see https://docs.fedoraproject.org/en-US/epel/)"
}

# Only the way to the index: uv itself tells what is wrong with passwords and certificates.
try_index='
import os, re, ssl, sys, urllib.error, urllib.request
from urllib.parse import urlsplit
index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL") or sys.argv[1]
url = urlsplit(re.sub(r"^[\w.-]+=", "", index))
place = url.netloc.rpartition("@")[2]
proxies = {} if urllib.request.proxy_bypass(url.hostname or "") else urllib.request.getproxies()
proxy = proxies.get(url.scheme) or proxies.get("all") or ""
direct = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))  # uv, but not this program, knows networks in it
if url.scheme not in ("http", "https") or proxy.startswith("socks") or "/" in direct:
    sys.exit()
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
https = urllib.request.HTTPSHandler(context=context)
opener = urllib.request.build_opener(https, urllib.request.ProxyHandler({url.scheme: proxy} if proxy else {}))
try:
    opener.open(urllib.request.Request(f"{url.scheme}://{place}{url.path}", method="HEAD"), timeout=5)
except urllib.error.HTTPError:
    pass
except Exception as error:
    reason = getattr(error, "reason", error)
    proxy = re.sub("^.*@|^.*://|/+$", "", proxy)
    sys.exit(f"{place} through the proxy {proxy}: {reason}" if proxy else f"{place}: {reason}")
'

refuse_index() {
  local said through=with_proxies
  [ "$SOURCE" = index ] || return 0
  command -v python3 || return 0
  # With these settings, uv may not need the index.
  [[ ! $UV_ENV =~ UV_(INDEX|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|OFFLINE|CONFIG_FILE)= ]] || return 0
  if [[ $UV_ENV != *UV_DEFAULT_INDEX=* ]] && grep -q '^[^#]*\(index\|url\)' /etc/uv/uv.toml; then return; fi
  [[ ${UV_ENV,,} != *_proxy=* ]] || through=
  said=$(eval "$UV_ENV" && $through timeout 10 python3 -I -c "$try_index" "$PUBLIC_INDEX" 2>&1) ||
    tell "it cannot reach the package index ${said:-within 10 s}; set a proxy (dask.env.HTTPS_PROXY), another index" \
      "(dask:secretEnv.UV_DEFAULT_INDEX), or environment: {source: wheelhouse}, which downloads on your computer"
}

refuse_data() {
  refuse_used_path
  if [ -z "$DEVICE" ] && [ "$HOLDS" = yes ]; then refuse_tmpfs; fi
  refuse_to_hide_files
}

main() {
  printf '%s\n' "$FRAME"
  ask refuse_index &
  ask refuse_missing_epel &
  if [ "$(id -u)" = 0 ]; then
    ask refuse_users
    ask refuse_sshd
    [ "$MANAGE" != yes ] || ask refuse
    ask refuse_data
    ask refuse_held_lock
  else
    tell "sudo asks the user $(id -un) for a password; allow commands without one, e.g. in /etc/sudoers.d/dask:" \
      "$(id -un | sed 's/[\\ ]/\\&/g') ALL=(ALL) NOPASSWD: ALL"
  fi
  ask refuse_system
  ask refuse_space
  ask refuse_clock
  ask refuse_python
  ask refuse_network
  wait
  printf '%s\n' "$FRAME"
}

main </dev/null
