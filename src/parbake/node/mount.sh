#!/bin/sh
# Puts the volume that parbake baked in the place of the container runtime's store, before the runtime starts: waits for
# the disk, grows its file system to the disk's size, brings the node's own pause image where the volume lacks it.
#
# cloud-init runs this early in each boot (a cloud-boothook), and so does parbake-mount.service from the second boot on.
# Whatever goes wrong, the node keeps its own store; one line in the journal says why: journalctl -t parbake-mount
#
# What may stand before this text: SANDBOX, the pause image that the volume carries; UUID, that of its file system:
# without it, the label alone says which disk it is; ROOT, the runtime's store where it is not containerd's own (k3s,
# RKE2), and UNITS, what runs the runtime then.
set -u
label=${PARBAKE_LABEL:-parbake}
patience=${PARBAKE_WAIT:-8} # seconds: a disk that is mapped at launch is there from the start
config=${PARBAKE_CONTAINERD_CONFIG:-/etc/containerd/config.toml}
work=${PARBAKE_WORK:-/run/parbake/mount}
old_address=$work/old.sock
new_address=$work/new.sock
no_block=${1:-} # from the unit, after which the runtime is ordered
by=LABEL wanted=$label what="disk labelled $label"
[ -z "${UUID:-}" ] || by=UUID wanted=$UUID what="file system $UUID"
device= root= held= sandbox= options=noatime

say() {
  logger -t parbake-mount -- "$1" 2>/dev/null || true
  echo "parbake-mount: $1"
}

keep_own_store() {
  say "$1: the node keeps its own store, and pulls"
  tidy
  [ -z "$held" ] || systemctl start $no_block $held
  exit 0
}

tidy() {
  for file in "$work"/*.pid; do
    [ ! -f "$file" ] || kill "$(cat "$file")" 2>/dev/null
  done
  wait
  if mountpoint -q "$work/volume"; then
    umount "$work/volume" || umount -l "$work/volume"
  fi
  rm -rf "$work/old" "$work/new" "$work"/*.sock* "$work"/*.pid "$work/sandbox.tar" "$work/containerd.toml"
}

now() {
  read -r up rest </proc/uptime
  echo "${up%%.*}"
}

# -- what is there

store() {
  found=$(sed -n "s/^root *= *[\"']\(\/[^\"']*\)[\"'].*/\1/p" "$config" 2>/dev/null | head -n 1)
  echo "${ROOT:-${found:-/var/lib/containerd}}"
}

wanted_sandbox() {
  found=$(sed -n -e "s/^ *sandbox *= *[\"']\([^\"']*\)[\"'].*/\1/p" -e "s/^ *sandbox_image *= *[\"']\([^\"']*\)[\"'].*/\1/p" \
    "$config" 2>/dev/null | head -n 1)
  # nodeadm writes the configuration before cloud-init, with this image of its AMI. Should it ever name none:
  [ -n "$found" ] || [ ! -x /usr/bin/nodeadm ] || found=localhost/kubernetes/pause
  # The runtime looks for it as any image: a name without a tag means this one.
  case ${found##*/} in
  '' | *:* | *@*) echo "$found" ;;
  *) echo "$found:latest" ;;
  esac
}

disks() {
  blkid -c /dev/null -o device -t "$1" 2>/dev/null
}

wait_for_disk() {
  end=$(($(now) + patience))
  while :; do
    found=$(disks "$by=$wanted")
    [ -z "$found" ] || break
    [ "$(now)" -lt "$end" ] || return 1
    sleep 0.5
  done
  echo "$found"
}

# -- the pause image

with_containerd() { # ROOT STATE ADDRESS: a runtime that only stores
  mkdir -p "$2"
  cat >"$work/containerd.toml" <<TOML
version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.restart"]
TOML
  containerd --config "$work/containerd.toml" --root "$1" --state "$2" --address "$3" --log-level error >"$2.log" 2>&1 &
  echo $! >"$3.pid"
  end=$(($(now) + 30))
  until ctr --address "$3" version >/dev/null 2>&1; do
    [ "$(now)" -lt "$end" ] || return 1
    sleep 0.1
  done
}

without_containerd() { # ADDRESS
  pid=$(cat "$1.pid")
  kill "$pid" && wait "$pid"
  rm -f "$1.pid"
}

in_store() { # ADDRESS ARGUMENT...
  address=$1
  shift
  timeout 60 ctr --address "$address" --namespace k8s.io "$@"
}

bring_sandbox() {
  with_containerd "$work/volume" "$work/new" "$new_address" || keep_own_store "the volume's store does not open"
  if ! in_store "$new_address" images ls -q | grep -qxF "$sandbox"; then
    with_containerd "$root" "$work/old" "$old_address" || keep_own_store "the node's store does not open"
    if in_store "$old_address" images ls -q | grep -qxF "$sandbox"; then
      in_store "$old_address" images export "$work/sandbox.tar" "$sandbox" >/dev/null &&
        in_store "$new_address" images import --snapshotter overlayfs "$work/sandbox.tar" >/dev/null &&
        in_store "$new_address" images label "$sandbox" io.cri-containerd.image=managed \
          io.cri-containerd.pinned=pinned >/dev/null ||
        keep_own_store "the pause image $sandbox cannot be brought into the volume"
      say "brought the pause image $sandbox into the volume"
    elif [ "${sandbox#localhost/}" != "$sandbox" ]; then
      keep_own_store "neither the volume nor the node has the pause image $sandbox"
    fi
    without_containerd "$old_address"
  fi
  without_containerd "$new_address"
}

# -- the file system

grow() { # DEVICE MOUNTED
  if [ -x /usr/lib/systemd/systemd-growfs ]; then
    /usr/lib/systemd/systemd-growfs "$2" >/dev/null 2>&1 && return
  fi
  case $(blkid -c /dev/null -o value -s TYPE "$1") in
  ext4) resize2fs "$1" >/dev/null 2>&1 ;;
  xfs) xfs_growfs "$2" >/dev/null 2>&1 ;;
  esac || say "the file system of $1 could not be grown: it keeps its size"
}

running() {
  for unit in ${UNITS:-containerd}; do
    case $(systemctl show --property ActiveState --value "$unit" 2>/dev/null) in
    active | activating | reloading) echo "$unit" ;;
    esac
  done
}

root=$(store)
if mountpoint -q "$root"; then
  [ "$(findmnt -n -o "$by" --mountpoint "$root" | head -n 1)" != "$wanted" ] || exit 0
  keep_own_store "$(findmnt -n -o SOURCE --mountpoint "$root" | head -n 1) is mounted at $root already"
fi
mkdir -p "$work/volume" "$root"
device=$(wait_for_disk)
# Any disk may have the label: one that a pod brought, or the volume of another bake.
others=
for disk in $(disks "LABEL=$label"); do
  case " $(echo $device) " in
  *" $disk "*) ;;
  *) others="$others$disk " ;;
  esac
done
[ -z "$others" ] || others="${others}is labelled $label, and is not the file system $wanted"
[ -n "$device" ] || keep_own_store "${others:-no $what within $patience s}"
[ "$(echo "$device" | wc -l)" -eq 1 ] || keep_own_store "more than one $what: $(echo $device)"
[ -z "$others" ] || say "$others: it is passed over"
# What parbake baked has no labels: where SELinux is enforced, what has none gets one that containers may read.
if [ "$(cat "${PARBAKE_SELINUX:-/sys/fs/selinux}/enforce" 2>/dev/null)" = 1 ]; then
  options=noatime,defcontext=system_u:object_r:container_ro_file_t:s0
fi
mount -o "$options" "$device" "$work/volume" || keep_own_store "$device cannot be mounted"
grow "$device" "$work/volume"

# k3s and RKE2 bring their own containerd, and what it is configured with, when they start.
[ -n "${ROOT:-}" ] || sandbox=$(wanted_sandbox)
held=$(running)
[ -z "$held" ] || systemctl stop $held
if [ -n "$sandbox" ] && [ "$sandbox" != "${SANDBOX:-}" ]; then
  bring_sandbox
fi
mount -o "$options" "$device" "$root" || keep_own_store "$device cannot be mounted at $root"
tidy
rm -f "$work"/*.log
# One that was started meanwhile has the old store open.
held=$(printf '%s\n' $held $(running) | sort -u)
[ -z "$held" ] || systemctl restart $no_block $held
size=$(df -k --output=size "$root" | tail -n 1)
say "$device is mounted at $root: $((size / 1024)) MiB"
