"""Virtual machines (QEMU): boot an artefact on an overlay and talk to what runs in it."""

from parbake.machine.vm.accelerator import accelerator
from parbake.machine.vm.boards import boots
from parbake.machine.vm.firmware import is_bootable
from parbake.machine.vm.guest import Clock, Guest, Ran, Waited
from parbake.machine.vm.machine import CONTAINERD, NETWORK_MAC, Drive, Machine
from parbake.machine.vm.reads import Disks, GuestRead, busiest_disk, marked_disk, read_log
from parbake.machine.vm.saved import Saved
from parbake.machine.vm.seed import Seed, agent_credentials, agent_seed

__all__ = [
    "CONTAINERD", "NETWORK_MAC", "Clock", "Disks", "Drive", "Guest", "GuestRead", "Machine", "Ran", "Saved", "Seed",
    "Waited", "accelerator", "agent_credentials", "agent_seed", "boots", "busiest_disk", "is_bootable", "marked_disk",
    "read_log",
]  # fmt: skip
