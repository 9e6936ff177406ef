"""Commands about AWS: the policies that a Bakefile needs."""

from __future__ import annotations

import json

from parbake.cli.door import DEFAULT_FILE, AsJson, BakefilePath, answer, app, door


@app.command()
def iam(file: BakefilePath = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """Print the AWS policies that this Bakefile needs.

    `caller` is for whoever runs parbake, `instance_role` with its trust for the instance profile of the builder,
    `rollout` for whoever rolls out to its targets, `prune` for `parbake prune --aws`, `karpenter` what Karpenter's
    role needs besides its own policy.
    """
    from parbake import iam as policies
    from parbake.bakefile import load

    door.as_json = as_json
    found = policies.policies(load(file))
    answer(found, lambda: "\n\n".join(f"{name}:\n{json.dumps(policy, indent=2)}" for name, policy in found.items()))
