# Bakes container images into an AMI: starts an instance of the source AMI, runs scripts/bake.sh on it, makes an AMI of
# it, and removes everything else. Values come from node.auto.pkrvars.json, or from -var on the command line.

packer {
  required_version = ">= 1.9.0"

  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = "~> 1.3"
    }
  }
}

locals {
  ami_name = var.AMI_NAME != "" ? var.AMI_NAME : "${var.NAME}-${formatdate("YYYYMMDD-hhmmss", timestamp())}"
  spot     = length(var.SPOT_INSTANCE_TYPES) > 0
}

source "amazon-ebs" "node" {
  region          = var.REGION
  ami_name        = local.ami_name
  ami_description = substr("Container images baked in: ${var.IMAGE}", 0, 250)

  source_ami_filter {
    filters = {
      (regex_replace(local.source_ami, "^ami-[0-9a-f]+$", "") == "" ? "image-id" : "name") = local.source_ami

      architecture        = var.ARCHITECTURE
      root-device-type    = "ebs"
      virtualization-type = "hvm"
    }
    owners      = var.SOURCE_AMI_OWNERS
    most_recent = true
  }

  # One instance; on spot the cheapest of several types that has capacity.
  instance_type        = local.spot ? null : var.INSTANCE_TYPE
  spot_instance_types  = local.spot ? var.SPOT_INSTANCE_TYPES : null
  spot_price           = local.spot ? "auto" : null
  subnet_id            = var.SUBNET_ID
  security_group_ids   = var.SECURITY_GROUP_IDS
  iam_instance_profile = var.INSTANCE_PROFILE

  # Should Packer be killed, scripts/bake.sh shuts the instance down after its time, and that removes it.
  shutdown_behavior = "terminate"

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  # Packer's own key and security group; the latter lets in SSH_FROM, or else only the machine that runs Packer.
  communicator                              = "ssh"
  ssh_username                              = var.SSH_USERNAME
  ssh_interface                             = var.SSH_INTERFACE
  ssh_timeout                               = "15m"
  ssh_clear_authorized_keys                 = true
  temporary_key_pair_type                   = "ed25519"
  temporary_security_group_source_cidrs     = var.SSH_FROM
  temporary_security_group_source_public_ip = length(var.SSH_FROM) == 0

  launch_block_device_mappings {
    device_name           = var.ROOT_DEVICE
    volume_type           = "gp3"
    volume_size           = var.VOLUME_SIZE
    iops                  = var.VOLUME_IOPS
    throughput            = var.VOLUME_THROUGHPUT
    delete_on_termination = true
    encrypted             = var.ENCRYPTED
    kms_key_id            = var.KMS_KEY_ID
  }

  # The first snapshot of a large volume takes far longer than AWS's usual ten minutes: wait up to four hours.
  aws_polling {
    delay_seconds = 30
    max_attempts  = 480
  }

  imds_support   = "v2.0"
  deprecate_at   = var.DEPRECATE_AFTER == "" ? null : timeadd(timestamp(), var.DEPRECATE_AFTER)
  ami_regions    = var.COPY_TO
  ami_users      = var.SHARE_WITH_ACCOUNTS
  ami_org_arns   = var.SHARE_WITH_ORGANISATIONS
  ami_ou_arns    = var.SHARE_WITH_UNITS
  snapshot_users = var.SHARE_WITH_ACCOUNTS

  # What Packer makes on the way carries RUN_TAGS, what stays carries TAGS.
  # An AMI begins with the former, so that one which Packer leaves half-made is found by them.
  run_tags        = merge(var.TAGS, var.RUN_TAGS)
  run_volume_tags = merge(var.TAGS, var.RUN_TAGS)
  tags            = merge(var.TAGS, { Name = local.ami_name })
  snapshot_tags   = merge(var.TAGS, { Name = local.ami_name })
}

build {
  sources = ["source.amazon-ebs.node"]

  provisioner "shell" {
    inline = ["mkdir -p /tmp/parbake"]
  }

  provisioner "file" {
    source      = "${path.root}/scripts/"
    destination = "/tmp/parbake"
  }

  provisioner "shell" {
    environment_vars = [
      "IMAGE=${var.IMAGE}",
      "RUNTIME=${var.RUNTIME}",
      "MINUTES=${var.TIME_LIMIT_MINUTES}",
    ]
    execute_command = "chmod +x {{ .Path }}; sudo env {{ .Vars }} {{ .Path }}"
    inline          = ["sh /tmp/parbake/bake.sh"]
  }

  post-processor "manifest" {
    output     = var.MANIFEST
    strip_path = true
    custom_data = {
      image      = var.IMAGE
      key        = var.KEY
      source_ami = local.source_ami
    }
  }
}
