#!/bin/sh
# Pulls IMAGE into the Docker daemon's store: for nodes of Kubernetes up to 1.22.
set -eu
. "$(dirname "$0")/login.sh"

systemctl start docker
ready=''
for _ in $(seq 60); do
    if docker version >/dev/null 2>&1; then ready=1; break; fi
    sleep 1
done
[ -n "$ready" ] || die "docker does not answer: see journalctl -u docker"

for image in $IMAGE; do
    split "$image"
    if is_ecr "$registry" && [ ! -e "$secrets/$registry" ]; then
        token "$region" | docker login --username AWS --password-stdin "$registry" >/dev/null 2>&1 \
            || die "docker login to $registry failed"
        : > "$secrets/$registry"
    fi
    if [ -n "$digest" ]; then wanted=$name@$digest; else wanted=$name:$tag; fi
    say "pulling $wanted"
    docker pull --quiet "$wanted" >/dev/null
    if [ -n "$digest" ] && [ -n "$tag" ]; then
        docker tag "$wanted" "$name:$tag"
        wanted=$name:$tag
    fi
    docker image inspect "$wanted" >/dev/null || die "$wanted is not there after the pull"
    say "baked $wanted"
done
