# Sourced by the pull scripts: logins for ECR. A token lives in memory and, where a program takes no other way, in a
# folder in memory that is removed when the script ends. Nothing of it stays on the disk.

say() { echo "parbake: $*"; }
die() { say "$*" >&2; exit 1; }

umask 077
secrets=$(mktemp -d /run/parbake.XXXXXX)
trap 'rm -rf "$secrets"' EXIT
trap 'exit 130' HUP INT TERM
export DOCKER_CONFIG="$secrets"

# Whether a registry is a private one of ECR; sets region.
is_ecr() {
    case $1 in
        [0-9]*.dkr.ecr.*.amazonaws.com | [0-9]*.dkr.ecr.*.amazonaws.com.cn | [0-9]*.dkr.ecr-fips.*.amazonaws.com)
            region=$(echo "$1" | cut -d. -f4) ;;
        [0-9]*.dkr-ecr.*.on.aws | [0-9]*.dkr-ecr.*.on.amazonwebservices.com.cn | [0-9]*.dkr-ecr-fips.*.on.aws)
            region=$(echo "$1" | cut -d. -f3) ;;
        *) return 1 ;;
    esac
}

# Write a token for a region to standard output.
token() {
    command -v aws >/dev/null 2>&1 || die "the AMI has no aws program to ask ECR for a token"
    aws ecr get-login-password --region "$1" || die "ECR gives no token in $1: does INSTANCE_PROFILE allow to pull?"
}

# The parts of a reference: registry, name (without tag and digest), tag, digest.
split() {
    digest='' tag=''
    rest=$1
    case $rest in *@*) digest=${rest#*@} rest=${rest%%@*} ;; esac
    case ${rest##*/} in *:*) tag=${rest##*:} rest=${rest%:*} ;; esac
    name=$rest
    case $name in
        *.*/* | *:*/* | localhost/*) registry=${name%%/*} ;;
        */*) registry=docker.io name=docker.io/$name ;;
        *) registry=docker.io name=docker.io/library/$name ;;
    esac
    if [ -z "$tag$digest" ]; then tag=latest; fi
}
