#!/bin/sh
# Pulls IMAGE into containerd, namespace k8s.io, where the kubelet looks: with nerdctl where the AMI has it, else with
# ctr. Then pins each image, so that the kubelet's garbage collection spares it, and checks that it is unpacked.
set -eu
. "$(dirname "$0")/login.sh"

systemctl start containerd
ready=''
for _ in $(seq 60); do
    if ctr version >/dev/null 2>&1; then ready=1; break; fi
    sleep 1
done
[ -n "$ready" ] || die "containerd does not answer: see journalctl -u containerd"

with_nerdctl() {
    if is_ecr "$registry" && [ ! -e "$secrets/$registry" ]; then
        token "$region" | nerdctl login --username AWS --password-stdin "$registry" >/dev/null
        : > "$secrets/$registry"
    fi
    nerdctl --namespace k8s.io pull --quiet "$1"
}

with_ctr() {
    set -- "$1" --namespace k8s.io images pull
    if is_ecr "$registry"; then
        # ctr takes passwords only as an argument, which every process can see: it gets the header in a file instead.
        mkdir -p "$secrets/hosts/$registry"
        basic=$({ printf 'AWS:'; token "$region" | tr -d '\n'; } | base64 | tr -d '\n')
        {
            printf 'server = "https://%s"\n' "$registry"
            printf '[host."https://%s"]\ncapabilities = ["pull", "resolve"]\n' "$registry"
            printf '[host."https://%s".header]\nauthorization = ["Basic %s"]\n' "$registry" "$basic"
        } > "$secrets/hosts/$registry/hosts.toml"
        set -- "$@" --hosts-dir "$secrets/hosts"
    fi
    wanted=$1
    shift
    ctr "$@" "$wanted" >/dev/null
}

for image in $IMAGE; do
    split "$image"
    if [ -n "$digest" ]; then wanted=$name@$digest; else wanted=$name:$tag; fi
    say "pulling $wanted"
    if command -v nerdctl >/dev/null 2>&1; then with_nerdctl "$wanted"; else with_ctr "$wanted"; fi
    # Pods ask for exactly the names in their specs.
    names=$wanted
    if [ -n "$digest" ] && [ -n "$tag" ]; then
        ctr --namespace k8s.io images tag --force "$wanted" "$name:$tag" >/dev/null
        names="$names $name:$tag"
    fi
    for each in $names; do
        ctr --namespace k8s.io images label "$each" io.cri-containerd.pinned=pinned >/dev/null
        checked=$(ctr --namespace k8s.io images check "name==$each" | tail -n 1)
        case $checked in
            *complete*true*) say "baked $each" ;;
            *) die "$each is not complete and unpacked after the pull: $checked" ;;
        esac
    done
done
