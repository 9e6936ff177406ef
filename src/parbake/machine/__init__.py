"""What nodes are made of: disks, file systems, virtual machines, base images."""
