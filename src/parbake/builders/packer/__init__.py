"""Packer's own files: the folder that bakes a Bakefile's images into an AMI with today's Packer and its Amazon plugin.

The template is fixed and lies in ``files/``; what a Bakefile says becomes the values of its variables. Sources: the
Amazon plugin's documentation (version 1.8), builder amazon-ebs; Packer's HCL reference; HCL's JSON syntax (a
text in a file of variables means itself, and ``//`` is a comment).
"""

from parbake.builders.packer.template import VALUES, Folder, folder, reference_text, values_text, variables

__all__ = ["VALUES", "Folder", "folder", "reference_text", "values_text", "variables"]
