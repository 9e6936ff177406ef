"""Disks in the forms that other clouds' own tools take, and the scripts that hand them over.

Google Compute Engine takes a raw disk in a gzipped tar archive, GKE a secondary boot disk with a layout of its own,
Azure a fixed VHD.
"""

from parbake.clouds.archive import write_archive
from parbake.clouds.gke import Layout, secondary_boot_disk
from parbake.clouds.scripts import azure_script, gcp_script, gke_script, resource_name
from parbake.clouds.vhd import vhd_size, write_vhd

__all__ = [
    "Layout",
    "azure_script",
    "gcp_script",
    "gke_script",
    "resource_name",
    "secondary_boot_disk",
    "vhd_size",
    "write_archive",
    "write_vhd",
]
