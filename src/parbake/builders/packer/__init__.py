"""Packer's own files: the folder that bakes a Bakefile's images into an AMI with today's Packer and its Amazon plugin.

The template is fixed and lies in ``files/``; what a Bakefile says becomes the values of its variables. Sources: the
Amazon plugin's documentation (version 1.8), builder amazon-ebs; Packer's HCL reference.
"""

from parbake.builders.packer.hcl import assignments
from parbake.builders.packer.manifest import artefacts
from parbake.builders.packer.template import VALUES, Folder, folder, reference_text, variables

__all__ = ["VALUES", "Folder", "artefacts", "assignments", "folder", "reference_text", "variables"]
