#!/bin/sh
# Runs on the instance, as root: pulls IMAGE (references with spaces between) into the node's image store, then seals
# the machine for the AMI. RUNTIME is containerd, docker or auto; MINUTES is how long it may take.
set -eu

say() { echo "parbake: $*"; }
die() { say "$*" >&2; exit 1; }

here=$(dirname "$0")
[ -n "${IMAGE:-}" ] || die "IMAGE is empty: name what to bake"

# Should nobody be left to stop this instance, it stops itself; its shutdown behaviour then removes it.
if command -v shutdown >/dev/null 2>&1; then
    shutdown -P "+${MINUTES:-90}" "the bake took too long" >/dev/null 2>&1 || say "no time limit: shutdown does not work"
fi

# First boot must be over: it grows the disk, and writes what sealing removes.
if command -v cloud-init >/dev/null 2>&1; then
    cloud-init status --wait >/dev/null 2>&1 || say "cloud-init reports problems; going on"
fi

# Kubernetes up to 1.22 runs Docker on EKS's AMIs, later ones run containerd.
if [ "${RUNTIME:-auto}" = auto ]; then
    RUNTIME=containerd
    if command -v kubelet >/dev/null 2>&1; then
        minor=$(kubelet --version 2>/dev/null | sed -n 's/^Kubernetes v1\.\([0-9]*\).*/\1/p')
        if [ -n "$minor" ] && [ "$minor" -le 22 ]; then RUNTIME=docker; fi
    fi
fi

case $RUNTIME in
    containerd | docker) say "runtime: $RUNTIME" ;;
    *) die "RUNTIME is $RUNTIME: must be auto, containerd or docker" ;;
esac

IMAGE=$IMAGE sh "$here/pull-$RUNTIME.sh"
sh "$here/seal.sh" "$RUNTIME"

if command -v shutdown >/dev/null 2>&1; then shutdown -c >/dev/null 2>&1 || true; fi
rm -rf "$here"
say "done"
