locals {
  source_ami = var.SOURCE_AMI
}
