# The values of variables.pkr.hcl, as parbake found them in its Bakefile.
# -var NAME=VALUE replaces one; parbake writes this file anew with --force.

IMAGE                    = "private.example.com/app:1 docker.io/library/busybox@sha256:0000000000000000000000000000000000000000000000000000000000000000 registry.k8s.io/pause:3.9"
NAME                     = "shop"
SOURCE_AMI               = "amazon-eks-arm64-node-1.22-*"
SOURCE_AMI_OWNERS        = ["amazon"]
REGION                   = "eu-west-1"
ARCHITECTURE             = "arm64"
INSTANCE_TYPE            = "m7g.large"
SPOT_INSTANCE_TYPES      = ["m7g.large", "c7g.large"]
SUBNET_ID                = "subnet-0123456789abcdef0"
SECURITY_GROUP_IDS       = ["sg-0123456789abcdef0"]
INSTANCE_PROFILE         = "pull"
SSH_USERNAME             = "ec2-user"
ROOT_DEVICE              = "/dev/xvda"
TIME_LIMIT_MINUTES       = 45
VOLUME_SIZE              = 40
VOLUME_IOPS              = 6000
VOLUME_THROUGHPUT        = 1000
ENCRYPTED                = true
KMS_KEY_ID               = "alias/nodes"
COPY_TO                  = ["eu-central-1"]
SHARE_WITH_ACCOUNTS      = ["123456789012"]
SHARE_WITH_ORGANISATIONS = ["arn:aws:organizations::123456789012:organization/o-a1"]
SHARE_WITH_UNITS         = ["arn:aws:organizations::123456789012:ou/o-a1/ou-b2"]
DEPRECATE_AFTER          = "2160h"
TAGS                     = {
  "team" = "it's $${data} & \"co\""
}
# warning: aws.fast_snapshot_restore: Packer does not do that; with `at: rollout`, `parbake rollout` does
# warning: aws.subnets: Packer takes one, subnet-0123456789abcdef0
# warning: registries.private.example.com: Packer's instance logs in to ECR alone, and knows nothing of this
