# The three that matter.

variable "IMAGE" {
  type        = string
  description = "The image to bake, exactly as pods name it; several with spaces between. name:tag@sha256:... pins one."
}

variable "AMI_NAME" {
  type        = string
  default     = ""
  description = "The name of the new AMI, which must not exist yet; without, NAME and the time."
}

variable "SOURCE_AMI" {
  type        = string
  default     = ""
  description = "The AMI to bake onto: an id, or a name with the wildcards * and ?, of which the newest wins."
}

# Where and how.

variable "NAME" {
  type        = string
  default     = "node"
  description = "Begins the AMI's name where AMI_NAME is empty."
}

variable "REGION" {
  type        = string
  default     = null
  description = "The region; without, that of the AWS configuration."
}

variable "SOURCE_AMI_OWNERS" {
  type        = list(string)
  default     = ["amazon"]
  description = "Who may own the source AMI: accounts, amazon, self."
}

variable "SOURCE_AMI_PARAMETER" {
  type        = string
  default     = ""
  description = "An SSM parameter that holds the id of the source AMI, where SOURCE_AMI is empty."
}

variable "ARCHITECTURE" {
  type        = string
  default     = "x86_64"
  description = "Of the source AMI and the instance: x86_64 or arm64."
}

variable "INSTANCE_TYPE" {
  type        = string
  default     = "m7i.large"
  description = "The type of the instance that bakes."
}

variable "SPOT_INSTANCE_TYPES" {
  type        = list(string)
  default     = []
  description = "Types to bake on a spot instance instead."
}

variable "SUBNET_ID" {
  type        = string
  default     = null
  description = "A subnet that reaches the registry; without, one of the default VPC."
}

variable "SECURITY_GROUP_IDS" {
  type        = list(string)
  default     = null
  description = "Security groups of the instance; without, Packer makes one and removes it."
}

variable "INSTANCE_PROFILE" {
  type        = string
  default     = null
  description = "The instance profile that lets the instance pull from ECR (and, for session_manager, use SSM)."
}

variable "SSH_USERNAME" {
  type        = string
  default     = "ec2-user"
  description = "The user of the source AMI; ubuntu on Ubuntu."
}

variable "SSH_INTERFACE" {
  type        = string
  default     = null
  description = "How Packer reaches the instance: public_ip, private_ip, session_manager (no open port)."
}

variable "SSH_FROM" {
  type        = list(string)
  default     = []
  description = "Whom Packer's own security group lets in (CIDRs); without, the public address of this machine alone."
}

variable "RUNTIME" {
  type        = string
  default     = "auto"
  description = "containerd, docker (Kubernetes up to 1.22), or auto: the node's kubelet decides."

  validation {
    condition     = contains(["auto", "containerd", "docker"], var.RUNTIME)
    error_message = "The RUNTIME must be auto, containerd or docker."
  }
}

variable "TIME_LIMIT_MINUTES" {
  type        = number
  default     = 90
  description = "The instance shuts itself down, and is removed, when the bake has not ended by then."
}

# The volume and the result.

variable "ROOT_DEVICE" {
  type        = string
  default     = "/dev/xvda"
  description = "The device name of the source AMI's root volume; /dev/sda1 on Ubuntu."
}

variable "VOLUME_SIZE" {
  type        = number
  default     = 30
  description = "The root volume, in GiB. Nodes need at least this size."
}

variable "VOLUME_IOPS" {
  type        = number
  default     = 3000
  description = "I/O operations a second, for the time of the bake."
}

variable "VOLUME_THROUGHPUT" {
  type        = number
  default     = 500
  description = "MiB/s, for the time of the bake."
}

variable "ENCRYPTED" {
  type        = bool
  default     = null
  description = "Whether to encrypt the volume and the AMI's snapshot; without, the account's default."
}

variable "KMS_KEY_ID" {
  type        = string
  default     = null
  description = "The KMS key for that: an id, alias or ARN."
}

variable "COPY_TO" {
  type        = list(string)
  default     = []
  description = "More regions for the AMI."
}

variable "SHARE_WITH_ACCOUNTS" {
  type        = list(string)
  default     = []
  description = "Accounts that may launch the AMI."
}

variable "SHARE_WITH_ORGANISATIONS" {
  type        = list(string)
  default     = []
  description = "Organisations (ARNs) that may launch the AMI."
}

variable "SHARE_WITH_UNITS" {
  type        = list(string)
  default     = []
  description = "Organisational units (ARNs) that may launch the AMI."
}

variable "DEPRECATE_AFTER" {
  type        = string
  default     = ""
  description = "When the AMI counts as deprecated, as a duration: 2160h is 90 days."
}

variable "TAGS" {
  type        = map(string)
  default     = {}
  description = "Tags for everything."
}

variable "RUN_TAGS" {
  type        = map(string)
  default     = {}
  description = "More tags for what Packer makes on the way and removes."
}

variable "KEY" {
  type        = string
  default     = ""
  description = "parbake's content key; goes into the manifest."
}

variable "MANIFEST" {
  type        = string
  default     = "packer-manifest.json"
  description = "Where Packer says what came out."
}
