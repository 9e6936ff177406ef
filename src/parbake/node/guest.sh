#!/bin/sh
# The guest's part of a bake, the same on EC2 and in QEMU: pull by digest into the node's own runtime, check, seal, and
# power off. POSIX sh and what a node image has. It comes as user data: a head that sets what is asked for (a run's
# name, a time limit, functions `registries`, `images`, `prover`, `subjects` and the lists of what to seal), then this text.
#
# Nothing can get in and nothing is asked: progress and the verdict are lines on the serial console,
#   @parbake RUN NUMBER KIND TEXT    KIND: begin, stage, baked, proved, warn, log, fail, done
# and the power goes off, whatever happened. Before `done` nothing counts. Numbers let a reader see each line once,
# however often it is shown the same console.
set -u
umask 022
ROOT=${PARBAKE_ROOT:-}
WORK=$ROOT/run/parbake
LOG=$WORK/log
NAMESPACE=k8s.io
PAUSE=${PARBAKE_PAUSE:-3} # seconds, longer from try to try

console() {
    if [ -z "${CONSOLE:-}" ]; then
        CONSOLE=/dev/console # the last `console=` of the kernel; where that is a screen, the serial line besides it
        for tty in $(cat /sys/class/tty/console/active 2>/dev/null); do
            case $tty in ttyS* | ttyAMA* | hvc*) CONSOLE=/dev/$tty ;; esac
        done
    fi
}

say() { # KIND TEXT: on a line of its own, also where the kernel is in the middle of one
    kind=$1
    shift
    NUMBER=$((${NUMBER:-0} + 1))
    printf '\n@parbake %s %s %s %s\n' "$PARBAKE_RUN" "$NUMBER" "$kind" "$(printf '%s' "$*" | tr -d '\r' | tr '\n' ' ')" >>"$CONSOLE"
}

stage() {
    STAGE=$1
    say stage "$1"
    echo "== $1" >>"$LOG"
}

power_off() {
    # Forced: no service gets to write anything any more. The kernel still syncs and unmounts.
    sync
    systemctl poweroff --force >/dev/null 2>&1 || poweroff -f >/dev/null 2>&1 || poweroff
    sleep 60
    poweroff -f
}

fail() { # REASON: the end of the log, then the verdict, then off
    trap - EXIT
    tail -n 40 "$LOG" >"$WORK/tail" 2>/dev/null
    while IFS= read -r line; do say log "$line"; done <"$WORK/tail"
    say fail "$*"
    [ -z "${WATCH:-}" ] || kill "$WATCH" 2>/dev/null
    power_off
    exit 1
}

watch() { # power off a bake that hangs, in a process of its own
    (
        trap - EXIT
        sleep "$PARBAKE_LIMIT"
        NUMBER=9999 # after all that the script itself says
        say fail "not done within $PARBAKE_LIMIT s; raise time_limit if it only needs longer"
        power_off
    ) >/dev/null 2>&1 &
    WATCH=$!
}

logged() { # run a command, its output to the log; $OUT holds its last words
    "$@" >"$WORK/out" 2>&1
    code=$?
    cat "$WORK/out" >>"$LOG"
    OUT=$(grep -E '^(ctr|[Ee]rror|docker)' "$WORK/out" | tail -n 1 | cut -c 1-600)
    [ -n "$OUT" ] || OUT=$(tail -n 3 "$WORK/out" | tr '\n' ' ' | cut -c 1-600)
    return $code
}

again() { # run a command up to five times, for what a network that is still coming up spoils
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ $tries -ge 5 ] && return 1
        sleep $((tries * PAUSE))
    done
}

pull() { # run a command that pulls; again only where the network is to blame
    tries=0
    until logged "$@"; do
        tries=$((tries + 1))
        case $(because) in *"cannot be re"*) ;; *) return 1 ;; esac
        [ $tries -ge 5 ] && return 1
        sleep $((tries * PAUSE))
    done
}

answers() { # COMMAND…: whether it succeeds before long
    tries=0
    until logged "$@"; do
        tries=$((tries + 1))
        [ $tries -le 60 ] || return 1
        sleep "$PAUSE"
    done
}

c() { ctr -n "$NAMESPACE" "$@"; }

# What a program said, as one line that names the cause.
because() {
    case $OUT in
    *"no space left on device"*) echo "the volume is too small: raise size" ;;
    *"no match for platform"* | *"no matching manifest"*) echo "it has no variant for $PARBAKE_PLATFORM" ;;
    *"i/o timeout"* | *"no route to host"* | *"network is unreachable"* | *"context deadline exceeded"* | *"connection refused"* | *"Client.Timeout"* | *"handshake timeout"* | *"Could not connect"* | *"Connect timeout"*)
        echo "the registry cannot be reached from here (subnet, route, NAT or VPC endpoints, security group, DNS): $OUT" ;;
    *"no such host"* | *"server misbehaving"* | *"Temporary failure in name resolution"*)
        echo "the registry's name cannot be resolved from here (DNS of the VPC, VPC endpoints): $OUT" ;;
    *"Unable to locate credentials"*) echo "the instance has no role (aws.instance_profile): $OUT" ;;
    *" 401"* | *" 403"* | *"nauthorized"* | *"enied"* | *"not authorized"* | *"no basic auth"* | *"authorization failed"*)
        echo "the registry refuses this login (instance profile, repository policy): $OUT" ;;
    *"x509"*) echo "the registry's certificate is not trusted: $OUT" ;;
    *"not found"*) echo "the registry has no such image: $OUT" ;;
    *) echo "$OUT" ;;
    esac
}

# -- runtime

runtime() { # containerd, or Docker on nodes of Kubernetes 1.22 and older that run it
    RUNTIME=containerd
    if command -v kubelet >/dev/null && command -v dockerd >/dev/null; then
        minor=$(kubelet --version 2>/dev/null | sed -n 's/.*v1\.\([0-9]*\).*/\1/p')
        [ -n "$minor" ] && [ "$minor" -le 22 ] && RUNTIME=docker
    elif ! command -v ctr >/dev/null && command -v dockerd >/dev/null; then
        RUNTIME=docker
    fi
    systemctl stop kubelet >/dev/null 2>&1 # a builder joins no cluster
    if [ $RUNTIME = docker ]; then
        logged systemctl start docker || fail "Docker does not start: $OUT"
        answers docker version || fail "Docker does not answer: $OUT"
    else
        command -v ctr >/dev/null || fail "this machine has neither ctr nor dockerd: no base for a bake"
        containerd_starts
    fi
    say stage "runtime $RUNTIME"
}

containerd_starts() {
    logged systemctl start containerd || fail "containerd does not start: $OUT"
    answers c version || fail "containerd does not answer: $OUT"
}

# -- volume: the store lies on a disk of its own, mounted where nodes will mount it

volume() {
    [ "$RUNTIME" = containerd ] || fail "a volume holds a store of containerd, and Docker runs this node"
    STORE=$(containerd config dump 2>/dev/null | sed -n "s/^root = ['\"]\(.*\)['\"].*/\1/p" | head -n 1)
    STORE=$ROOT${STORE:-/var/lib/containerd}
    stage "volume at $STORE"
    if [ "$PARBAKE_MODE" != verify ]; then
        command -v "${PARBAKE_MKFS%% *}" >/dev/null || fail "this machine has no ${PARBAKE_MKFS%% *}: write another filesystem"
        pause_of_the_base
    fi
    systemctl stop containerd >/dev/null 2>&1
    disk=
    tries=0
    until disk=$(found_disk) && [ -n "$disk" ]; do
        tries=$((tries + 1))
        [ $tries -gt 60 ] && fail "no disk of $PARBAKE_VOLUME bytes is there for the volume"
        sleep 1
    done
    case $disk in *" "*) fail "more than one disk could be the volume: $disk" ;; esac
    if [ "$PARBAKE_MODE" != verify ]; then
        # shellcheck disable=SC2086 # a list of words
        logged $PARBAKE_MKFS "$disk" || fail "no file system can be made on $disk: $OUT"
    fi
    mkdir -p "$STORE"
    logged mount "$disk" "$STORE" || fail "$disk cannot be mounted: $OUT"
    containerd_starts
    [ ! -f "$WORK/pause.tar" ] || logged c images import --platform "$PARBAKE_PLATFORM" "$WORK/pause.tar" ||
        fail "the base's pause image cannot be brought to the volume: $OUT"
    [ ! -f "$WORK/pause.tar" ] || logged c images label "$PAUSE_IMAGE" io.cri-containerd.pinned=pinned ||
        fail "$PAUSE_IMAGE: cannot be pinned: $OUT"
}

found_disk() { # a bake's: of the right size, with nothing on it, and no disk of the instance's own; a proof's: by its UUID
    [ "$PARBAKE_MODE" != verify ] || {
        blkid -U "$PARBAKE_VOLUME_UUID"
        return
    }
    lsblk -bdnro NAME,SIZE,TYPE | while read -r name size type; do
        [ "$type" = disk ] && [ "$size" = "$PARBAKE_VOLUME" ] || continue
        grep -q "Instance Storage" "$ROOT/sys/block/$name/device/model" 2>/dev/null && continue
        blkid -p "/dev/$name" >/dev/null 2>&1
        [ $? = 2 ] && echo "/dev/$name"
    done | tr '\n' ' ' | sed 's/ $//'
}

pause_of_the_base() { # nodes see only what the volume holds: their pause image goes with it
    [ "$PARBAKE_SANDBOX" = 0 ] || return 0 # the bake brings one
    PAUSE_IMAGE=$(c images ls 'labels."io.cri-containerd.pinned"==pinned' | awk '$1 ~ /\/pause[:@]/ && $1 !~ /@/ { print $1; exit }')
    if [ -z "$PAUSE_IMAGE" ]; then
        say warn "this machine has no pinned pause image, so that the volume holds none: name it in sandbox, or no pod starts"
    else
        logged c images export --platform "$PARBAKE_PLATFORM" "$WORK/pause.tar" "$PAUSE_IMAGE" ||
            fail "$PAUSE_IMAGE cannot be read from this machine's store (name it in sandbox): $OUT"
        echo "the volume gets $PAUSE_IMAGE of this machine" >>"$LOG"
    fi
}

seal_volume() { # the machine itself is thrown away
    stage seal
    systemctl stop containerd >/dev/null 2>&1
    sync
    fstrim "$STORE" >/dev/null 2>&1 || :
    logged umount "$STORE" || fail "the volume cannot be unmounted: $OUT"
}

# -- registries

registry() { # HOST URL LOGIN [CA]: LOGIN is - (none) or ecr:REGION; what it needs lies below /run, which is memory
    folder=$WORK/hosts/$1
    mkdir -p "$folder"
    [ "$RUNTIME" != docker ] || docker_registry "$@"
    password=
    case $3 in ecr:*)
        stage "login $1"
        password=$(again ecr_password "$1" "${3#ecr:}") || {
            OUT=$(grep . "$WORK/login" | tail -n 1 | cut -c 1-300)
            fail "no login for $1: $(because)"
        }
        [ "$RUNTIME" != docker ] || again docker_login "$1" || {
            OUT=$(grep . "$WORK/login" | tail -n 1 | cut -c 1-300)
            fail "no login for $1: $(because)"
        }
        ;;
    esac
    {
        echo "server = \"$2\""
        echo "[host.\"$2\"]"
        echo 'capabilities = ["pull", "resolve"]'
        if [ -n "${4:-}" ]; then
            printf '%s\n' "$4" >"$folder/ca.pem"
            echo "ca = \"$folder/ca.pem\""
        fi
        if [ -n "$password" ]; then
            echo "[host.\"$2\".header]"
            echo "Authorization = [\"Basic $(printf 'AWS:%s' "$password" | base64 | tr -d '\n')\"]"
        fi
    } >"$folder/hosts.toml"
}

ecr_password() { # HOST REGION: by the instance's role
    : >"$WORK/login"
    if command -v aws >/dev/null; then
        AWS_MAX_ATTEMPTS=2 aws ecr get-login-password --region "$2" --cli-connect-timeout 10 2>"$WORK/login" && return 0
    fi
    for helper in /etc/eks/image-credential-provider/ecr-credential-provider ecr-credential-provider; do
        command -v "$helper" >/dev/null || continue
        printf '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":"%s/x"}' "$1" |
            "$helper" get-credentials 2>>"$WORK/login" |
            sed -n 's/.*"password" *: *"\([^"]*\)".*/\1/p' | grep . && return 0
    done
    [ -s "$WORK/login" ] || echo "neither aws nor ecr-credential-provider is on this machine" >"$WORK/login"
    return 1
}

fetch() { # REPOSITORY@DIGEST: into the store, unpacked
    pull c images pull --platform "$PARBAKE_PLATFORM" --hosts-dir "$WORK/hosts" "$1"
}

# -- images

image() { # TARGET MANIFEST LAYERS SOURCE NAME…: LAYERS are the digests' beginnings; SOURCE is repository@digest
    TARGET=$1 MANIFEST=$2 LAYERS=$3 SOURCE=$4
    shift 4
    COUNT=$((${COUNT:-0} + 1))
    stage "pull $1"
    if [ "$RUNTIME" = docker ]; then docker_image "$@"; else containerd_image "$@"; fi
    say baked "$TARGET $*"
}

containerd_image() {
    fetch "$SOURCE" || fail "$1: $(because)"
    found=$(digest_of "$SOURCE")
    [ "$found" = "$TARGET" ] || fail "$1: what came is ${found:-nothing}, not $TARGET"
    logged c images check "name==\"$SOURCE\""
    grep -q " complete (.* true" "$WORK/out" || fail "$1: not unpacked: $OUT"
    keep=
    for name; do
        [ "$name" = "$SOURCE" ] && keep=1
        [ "$name" = "$SOURCE" ] || logged c images tag --force "$SOURCE" "$name" || fail "$name: cannot be named: $OUT"
        logged c images label "$name" io.cri-containerd.pinned=pinned || fail "$name: cannot be pinned: $OUT"
        [ "$(digest_of "$name")" = "$TARGET" ] || fail "$name: names something else"
    done
    [ -n "$keep" ] || logged c images rm "$SOURCE"
    [ "$PARBAKE_KEEP_LAYERS" = 1 ] || echo "$MANIFEST $LAYERS" >>"$WORK/discard"
}

digest_of() { c images ls "name==\"$1\"" | awk -v name="$1" '$1 == name { print $3 }'; }

discard() { # as a node that discards unpacked layers: manifests and configurations stay, layers' blobs go
    [ -s "$WORK/discard" ] || return 0
    stage "discard unpacked layers"
    logged c content ls -q || fail "the store cannot be listed: $OUT"
    cp "$WORK/out" "$WORK/content"
    while read -r manifest layers; do # as the plan has them: a manifest may name other digests as well
        labels='' number=0
        for layer in $layers; do
            labels="$labels containerd.io/gc.ref.content.l.$number="
            number=$((number + 1))
            grep "^sha256:$layer" "$WORK/content" >>"$WORK/layers"
        done
        # shellcheck disable=SC2086 # a list of words
        [ -z "$labels" ] || logged c content label "$manifest" $labels
    done <"$WORK/discard"
    [ -s "$WORK/layers" ] || return 0
    sort -u "$WORK/layers" >"$WORK/out"
    while read -r layer; do c content rm "$layer" >>"$LOG" 2>&1 || :; done <"$WORK/out"
}

# -- docker

docker_registry() { # HOST URL LOGIN [CA]: an URL with a path leads to one server in the place of all registries
    case $2 in
    http://*/*)
        case $1 in localhost | localhost:* | 127.*)
            fail "Docker looks for $1 on its own machine: give the image a name in a registry" ;;
        esac
        OUT=${2#http://}
        PROXY=http://parbake:${OUT#*/}@${OUT%%/*} # with its path as the password
        # The Hub is never asked without TLS, but a mirror of its own name is.
        if [ "$1" = docker.io ]; then option="--registry-mirror http://$1"; else option="--insecure-registry $1"; fi
        DOCKER="${DOCKER:-} $option"
        ;;
    http://*) DOCKER="${DOCKER:-} --insecure-registry $1" ;;
    esac
    [ -n "${4:-}" ] || return 0
    ca=$ROOT/etc/docker/certs.d/$1/parbake.crt # the daemon trusts what is there from its next pull on
    mkdir -p "${ca%/*}"
    printf '%s\n' "$4" >"$ca"
}

docker_login() { # HOST
    printf '%s' "$password" |
        DOCKER_CONFIG=$WORK/docker docker login --username AWS --password-stdin "$1" >"$WORK/login" 2>&1
}

docker_reaches() { # the daemon gets what only this bake needs by a file in memory
    [ -n "${DOCKER:-}" ] || return 0
    own=$ROOT/run/systemd/system/docker.service.d
    mkdir -p "$own"
    {
        echo "[Service]"
        echo "ExecStart="
        echo "ExecStart=$(systemctl cat docker | sed -n 's/^ExecStart=//p' | tail -n 1)$DOCKER"
        [ -z "${PROXY:-}" ] || echo "Environment=HTTP_PROXY=$PROXY HTTPS_PROXY=$PROXY NO_PROXY="
    } >"$own/parbake.conf"
    chmod 600 "$own/parbake.conf"
    systemctl daemon-reload
    logged systemctl restart docker || fail "Docker does not start with$DOCKER: $OUT"
    answers docker version || fail "Docker does not answer: $OUT"
}

docker_forgets() {
    rm -f "$ROOT"/etc/docker/certs.d/*/parbake.crt
    rmdir "$ROOT"/etc/docker/certs.d/* "$ROOT/etc/docker/certs.d" 2>/dev/null || :
}

docker_image() { # Docker keeps its own store and knows no pins: kubelet's garbage collection has to be told otherwise
    export DOCKER_CONFIG="$WORK/docker"
    pull docker pull "$SOURCE" || fail "$1: $(because)"
    for name; do
        case $name in *@*) continue ;; esac
        logged docker tag "$SOURCE" "$name" || fail "$name: cannot be named: $OUT"
        docker image inspect --format '{{.RepoDigests}}' "$name" | grep -q "$TARGET" || fail "$name: names something else"
    done
    say warn "$1: Docker knows no pinned images; kubelet may collect it when the disk fills up"
}

# -- verify: each image starts from what is there, as a kubelet would start it (prove.py, in the head)

prove() {
    python=$(command -v python3 || command -v /usr/libexec/platform-python) || fail "no python3 is here to prove images"
    prover >"$WORK/prove.py"
    subjects >"$WORK/subjects"
    mkfifo "$WORK/proofs"
    "$python" "$WORK/prove.py" "$RUNTIME" "$WORK/subjects" >"$WORK/proofs" 2>>"$LOG" &
    proving=$!
    while read -r kind words; do
        case $kind in
        stage) stage "$words" ;;
        warn) say warn "$words" ;;
        proved) # twice: kernel messages may run into one of the two
            say proved "$words"
            say proved "$words"
            ;;
        esac
    done <"$WORK/proofs"
    wait "$proving" || fail "the verification program failed: $(tail -n 1 "$LOG" | cut -c 1-300)"
}

# -- seal: what belongs to one machine goes (the lists are the offline builder's own)

seal() {
    stage seal
    if [ "$RUNTIME" = docker ]; then
        systemctl stop docker docker.socket >/dev/null 2>&1
    else
        systemctl stop containerd >/dev/null 2>&1
    fi
    set -f
    for pattern in $PARBAKE_REMOVED; do remove "$pattern"; done
    if [ -f "$ROOT/usr/bin/nodeadm" ]; then
        for pattern in $PARBAKE_REMOVED_WITH_NODEADM; do remove "$pattern"; done
    fi
    for file in $PARBAKE_EMPTIED; do [ -f "$ROOT/$file" ] && : >"$ROOT/$file"; done
    for folder in $PARBAKE_LOGS; do [ -d "$ROOT/$folder" ] && find "$ROOT/$folder" -type f -exec rm -f {} +; done
    for file in $PARBAKE_UNLESS_LINK; do [ -L "$ROOT/$file" ] || rm -f "$ROOT/$file"; done
    set +f
    case $(cat "$ROOT/etc/hostname" 2>/dev/null) in
    localhost | localhost.localdomain | '') ;;
    *) rm -f "$ROOT/etc/hostname" ;;
    esac
    # Keys that the cloud put there for this one machine.
    rm -f "$ROOT"/root/.ssh/authorized_keys "$ROOT"/home/*/.ssh/authorized_keys
    sync
    fstrim "${ROOT:-/}" >/dev/null 2>&1 || :
}

remove() { # PATTERN below the root; a star also means names with a dot in front
    case $1 in
    */\*) [ -d "$ROOT/${1%/\*}" ] && find "$ROOT/${1%/\*}" -mindepth 1 -maxdepth 1 -exec rm -rf {} + 2>/dev/null ;;
    *)
        set +f
        # shellcheck disable=SC2086 # a pattern
        rm -rf "$ROOT"/$1
        set -f
        ;;
    esac
    return 0
}

# -- main

main() {
    console
    mkdir -p "$WORK"
    chmod 700 "$WORK"
    : >"$LOG"
    say begin "$PARBAKE_MODE"
    trap 'fail "the script was stopped"' EXIT
    trap 'exit 1' HUP INT TERM
    watch
    stage runtime
    runtime
    [ -z "$PARBAKE_VOLUME" ] || volume
    if [ "$PARBAKE_MODE" = verify ]; then
        prove
    else
        registries
        [ "$RUNTIME" != docker ] || docker_reaches
        images
        if [ "$RUNTIME" = docker ]; then docker_forgets; else discard; fi
        if [ -n "$PARBAKE_VOLUME" ]; then seal_volume; else seal; fi
    fi
    trap - EXIT
    kill "$WATCH" 2>/dev/null
    rm -rf "$WORK/docker" "$WORK/hosts"
    say "done" "$PARBAKE_MODE"
    say "done" "$PARBAKE_MODE" # again: kernel messages may run into one of the two
    power_off
}

main
