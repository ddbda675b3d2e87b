# What the systemd units of scheduler, workers and notebook server share.
# shellcheck shell=bash

# The machine's limit on open files, but at most 65536, which is enough for the scheduler of a large cluster.
open_files() { awk '/^Max open files/ {print ($5 == "unlimited" || $5 > 65536) ? 65536 : $5}' /proc/1/limits; }

# Whether the machine has GPUs or InfiniBand. PrivateDevices would hide their devices from workers.
uses_devices() {
  compgen -G '/dev/nvidia*' || compgen -G '/dev/dri/render*' || ls -d /dev/kfd || ls -d /dev/infiniband ||
    grep -qx 0x10de /sys/bus/pci/devices/*/vendor
} >/dev/null 2>&1

# protection FOLDER...: the limits of a service that uses these folders. With HOMES, it can read files in /home that
# every user can read.
protection() {
  local private_tmp=yes protect_home=yes private_devices=yes folder
  [ "$HOMES" != yes ] || protect_home=read-only
  for folder; do
    case $folder in
      /tmp/* | /var/tmp/*) private_tmp=no ;;
      /home/* | /root/*) protect_home=no ;;
    esac
  done
  if uses_devices; then private_devices=no; fi
  cat <<UNIT
UMask=0007
LimitNOFILE=$(open_files)
NoNewPrivileges=yes
PrivateTmp=$private_tmp
ProtectHome=$protect_home
# Not strict, which would make your own mounts read-only, and keep a dead mount of the shared directory.
ProtectSystem=full
PrivateDevices=$private_devices
PrivateMounts=yes
ProtectClock=$private_devices
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectHostname=yes
ProtectProc=invisible
LockPersonality=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
CapabilityBoundingSet=
UNIT
}

# outdated UNIT FILE...: whether UNIT is running and one of the files has changed since it started.
outdated() {
  local since file
  systemctl is-active -q "$1" || return
  since=$(systemctl show --timestamp=unix -p ActiveEnterTimestamp --value "$1")
  shift
  for file in "$@"; do
    [ "$(stat -c %Y "$file")" -le "${since#@}" ] || return 0
  done
  return 1
}
