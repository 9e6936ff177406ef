#!/bin/sh
# The guest's part of a bake on Bottlerocket, which runs no script of its user data. Systems Manager runs this in the
# control container, one step a command: what a command says comes back when it ends. It follows guest.sh's beginning and
# its images in the same text, and puts its own in the place of what is different: the host is reached through the admin
# container, nothing is seen of the serial console, and the instance is stopped from outside. Steps: prepare, images,
# finish; and of a proof: prepare, subjects.
SOCKET=/run/containerd/containerd.sock
RUNTIME=containerd
NUMBER=$PARBAKE_NUMBER # steps number on: a reader takes each line once

host() { apiclient exec admin sheltie "$@" </dev/null; }

c() { host ctr -a "$SOCKET" -n "$NAMESPACE" "$@"; }

say() { # KIND TEXT
    kind=$1
    shift
    NUMBER=$((NUMBER + 1))
    printf '\n@parbake %s %s %s %s\n' "$PARBAKE_RUN" "$NUMBER" "$kind" "$(printf '%s' "$*" | tr -d '\r' | tr '\n' ' ')"
}

power_off() { :; }

watch() { # an instance that nobody follows any more switches itself off
    (
        trap - EXIT
        sleep "$PARBAKE_LIMIT"
        host systemctl poweroff
    ) >/dev/null 2>&1 </dev/null &
}

# host-ctr is what Bottlerocket itself pulls with before its kubelet runs. It logs in to ECR with the instance's role, in
# its own memory: no password is in any command. The second name that it gives an image of ECR goes again.
fetch() {
    pull host host-ctr --containerd-socket="$SOCKET" --namespace="$NAMESPACE" pull-image --source="$1" \
        --registry-config=/etc/host-containers/host-ctr.toml || return 1
    c images ls -q | grep "^ecr\.aws/.*@${1#*@}\$" >"$WORK/names"
    while read -r name; do logged c images rm "$name"; done <"$WORK/names"
}

prepare() {
    stage "reach the host"
    command -v apiclient >/dev/null || fail "no apiclient is here: the base is no Bottlerocket, or Systems Manager runs elsewhere"
    answers host systemctl --version || fail "the admin container does not answer (its image comes from ECR Public): $OUT"
    watch
    logged host systemctl stop kubelet || fail "the kubelet cannot be stopped: $OUT"
    answers c version || fail "containerd does not answer: $OUT"
}

finish() { # the data volume holds all that the machine has written: what tells machines apart goes
    discard
    stage seal
    logged host rm -rf /local/host-containers/admin/etc /local/host-containers/admin/.ssh /var/lib/kubelet/pki ||
        fail "what belongs to this machine cannot be removed: $OUT"
    logged host sync || fail "the volume cannot be written out: $OUT"
}

# -- proof

subject() { # TARGET UP SECONDS OPTIONS COMMAND NAME…: UP is exit, running or mounted (COMMAND is the path); OPTIONS (ctr's) and COMMAND: a word a line
    TARGET=$1 UP=$2 FOR=$3 OPTIONS=$4 COMMAND=$5 FIRST=$6
    shift 5
    COUNT=$((${COUNT:-0} + 1))
    stage "start $FIRST"
    problem='' pinned=true started=null ran=null
    for name; do
        # The notes of the store itself: nothing here can pull.
        found=$(digest_of "$name")
        [ -n "$found" ] || note "$name: the node's store has no image of this name"
        [ "$found" = "$TARGET" ] || [ -z "$found" ] || note "$name: names $found, not $TARGET"
        c images ls "name==\"$name\"" | grep -q 'io.cri-containerd.pinned=pinned' || pinned=false
    done
    [ $pinned = true ] || note "$FIRST: is not pinned"
    c images check "name==\"$FIRST\"" | tail -n 1 | grep -q ' true *$' || note "$FIRST: is not unpacked"
    runtime="containerd $(c version | awk '/^Server/ { server = 1 } server && /Version/ { print $2 }')"
    case "$problem $UP" in
    ' -') ;;
    ' mounted') mounted ;;
    ' '*) start ;;
    esac
    proof=$(printf '{"name":"%s","pinned":%s,"start_seconds":%s,"ran_seconds":%s,"asked":false,"problems":[%s],"runtime":"%s"}' "$FIRST" "$pinned" "$started" "$ran" "$problem" "$runtime")
    say proved "$proof"
}

note() { # a problem, as JSON
    said=$(printf '%s' "$1" | tr -d '"\\' | tr -c '[:print:]' ' ')
    problem="$problem${problem:+,}\"$said\""
}

mounted() { # the image's snapshots, read-only, as a pod's image volume shows them
    case $runtime in "containerd v1."* | "containerd 1."* | "containerd v2.0."* | "containerd 2.0."*)
        note "an image volume needs containerd 2.1 or later, and this is $runtime"
        return
        ;;
    esac
    at=/run/parbake-$PARBAKE_RUN-$COUNT
    began=$(date +%s)
    host mkdir -p "$at"
    if logged c images mount "$FIRST" "$at"; then
        started=$(($(date +%s) - began))
        host test -e "$at$COMMAND" || note "the image is mounted, and holds no $COMMAND"
        logged c images unmount --rm "$at"
    else
        note "it cannot be mounted: $OUT"
    fi
    [ -z "$problem" ] || started=null
}

start() { # a container of the image, from its snapshots
    task=parbake-$PARBAKE_RUN-$COUNT
    began=$(date +%s)
    IFS='
'
    set -f
    # shellcheck disable=SC2086 # lists of lines
    logged c run --detach --null-io $OPTIONS "$FIRST" "$task" $COMMAND
    code=$?
    set +f
    unset IFS
    if [ $code != 0 ]; then
        note "it cannot be started: $OUT"
        return
    fi
    started=$(($(date +%s) - began))
    state=RUNNING left=$FOR
    while [ "$left" -gt 0 ] && [ "$state" = RUNNING ]; do
        sleep 1
        left=$((left - 1))
        state=$(c tasks ls | awk -v task="$task" '$1 == task { print $3 }')
    done
    if [ "$state" = RUNNING ]; then
        [ "$UP" = running ] || note "it did not end in time"
        [ "$UP" = exit ] || ran=$FOR
        c tasks kill -s SIGKILL "$task" >>"$LOG" 2>&1
        sleep 1
        c tasks delete --force "$task" >>"$LOG" 2>&1
    else
        c tasks delete "$task" >>"$LOG" 2>&1 # which ends with the code that the container ended with
        code=$?
        [ $code = 0 ] || note "it ended with code $code before it was up"
    fi
    c containers rm "$task" >>"$LOG" 2>&1
    [ -z "$problem" ] || started=null
}

# -- main

mkdir -p "$WORK"
chmod 700 "$WORK"
: >"$LOG"
trap 'fail "the script was stopped"' EXIT
trap 'exit 1' HUP INT TERM
"$PARBAKE_STEP"
trap - EXIT
[ "$PARBAKE_LAST" = 0 ] || say "done" "$PARBAKE_STEP"
