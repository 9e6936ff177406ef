# AWS publishes the id of the newest AMI of a kind in an SSM parameter.
data "amazon-parameterstore" "source" {
  region = var.REGION
  name   = var.SOURCE_AMI_PARAMETER
}

locals {
  source_ami = var.SOURCE_AMI != "" ? var.SOURCE_AMI : data.amazon-parameterstore.source.value
}
