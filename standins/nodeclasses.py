"""A node class as people write it, and what changed of a text."""

from __future__ import annotations

import difflib

NODE_CLASS = """\
# The nodes of the search team.
apiVersion: karpenter.k8s.aws/v1
kind: EC2NodeClass
metadata:
  name: search   # named in the NodePool
spec:
  amiFamily: AL2023
  # which image
  amiSelectorTerms:
    - alias: al2023@latest   # moves
    - tags:
        team: "search"
  blockDeviceMappings:
  - deviceName: /dev/xvda
    ebs: {volumeSize: 20Gi, volumeType: 'gp3'}  # root
  userData: |
    #!/bin/sh
    echo hello

  role: "KarpenterNodeRole"
"""


def changed(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in lines if line[0] in "+-" and line[:3] not in {"+++", "---"}]
