#!/bin/sh
# Makes the machine fit for an AMI: stops what writes, removes what is this instance's own, and empties what a new
# machine fills. $1 is the runtime.
set -eu

for unit in kubelet "$1" docker.socket; do systemctl stop "$unit" >/dev/null 2>&1 || true; done

rm -rf /var/lib/cloud/data /var/lib/cloud/instance /var/lib/cloud/instances /var/lib/cloud/sem
rm -rf /var/lib/kubelet/image_manager /var/lib/kubelet/pods /var/lib/kubelet/*_manager_state
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
rm -f /var/lib/dhclient/*.lease* /var/lib/dhcp/*.lease* /var/lib/NetworkManager/*.lease /run/systemd/netif/leases/*
rm -f /root/.docker/config.json /home/*/.docker/config.json /root/.bash_history /home/*/.bash_history
: > /etc/machine-id
find /var/log -type f -exec sh -c 'for log; do : > "$log"; done' sh {} +

sync
fstrim -a 2>/dev/null || true
echo "parbake: sealed"
