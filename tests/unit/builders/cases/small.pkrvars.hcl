# The values of variables.pkr.hcl, as parbake found them in its Bakefile.
# -var NAME=VALUE replaces one; parbake writes this file anew with --force.

IMAGE                = "registry.example.com/team/app:1.4"
NAME                 = "shop"
SOURCE_AMI_PARAMETER = "/aws/service/eks/optimized-ami/1.33/amazon-linux-2023/x86_64/standard/recommended/image_id"
SOURCE_AMI_OWNERS    = ["self", "amazon"]
ARCHITECTURE         = "x86_64"
INSTANCE_TYPE        = "m7i.large"
SSH_USERNAME         = "ec2-user"
ROOT_DEVICE          = "/dev/xvda"
TIME_LIMIT_MINUTES   = 90
VOLUME_SIZE          = 50
VOLUME_IOPS          = 3000
VOLUME_THROUGHPUT    = 500
