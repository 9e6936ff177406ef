"""A fleet without an engine: as a matrix of GitHub Actions, or as Jobs of Kubernetes. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from parbake.core.errors import InputError
from parbake.fleet.cells import Cell
from parbake.fleet.file import Fleet

MOST_JOBS = 256
"""Jobs of one matrix (GitHub documentation, "Running variations of jobs in a workflow")."""
_FETCH = 'git init -q . && git fetch -q --depth 1 "$1" "$2" && git checkout -q FETCH_HEAD'
_LONGEST_NAME = 63


def for_github(fleet: Fleet, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the ``strategy`` of a job that bakes one cell. Raises InputError for more cells than a matrix may have."""
    if len(cells) > MOST_JOBS:
        raise InputError(
            f"{len(cells)} cells are more than the {MOST_JOBS} jobs that a matrix of GitHub Actions may have",
            hint="split the fleet, or bake it with `parbake fleet up`",
        )
    include = [
        {"cell": cell.name, "file": cell.file, "platform": cell.platform, "store": fleet.store} for cell in cells
    ]
    return {"fail-fast": False, "max-parallel": min(fleet.concurrency.cells, MOST_JOBS), "matrix": {"include": include}}


def for_kubernetes(fleet: Fleet, cells: Sequence[Cell], *, image: str, namespace: str) -> dict[str, Any]:
    """Return a List of Jobs, one for each cell, that fetch the Bakefiles from Git and bake.

    ``image`` is parbake's own. Raises InputError where pods could not share the store, or not get the Bakefiles.
    """
    if not fleet.store.startswith("s3://"):
        raise InputError(
            f"the store {fleet.store} is a folder, which pods do not share", hint="write store: s3://BUCKET/PREFIX"
        )
    if fleet.source is None:
        raise InputError(
            "the fleet has no `source`, so pods cannot get the Bakefiles", hint="write source: {git: URL, ref: BRANCH}"
        )
    jobs = [_job(fleet, cell, fleet.source.git, fleet.source.ref, image, namespace) for cell in cells]
    return {"apiVersion": "v1", "kind": "List", "items": jobs}


def _job(fleet: Fleet, cell: Cell, git: str, ref: str, image: str, namespace: str) -> dict[str, Any]:
    bakes = [{"name": "bakes", "mountPath": "/bakes"}]
    fetch = {
        "name": "source",
        "image": image,
        "command": ["/bin/sh", "-ec", _FETCH, "sh", git, ref],
        "workingDir": "/bakes",
        "volumeMounts": bakes,
    }
    bake = {
        "name": "bake",
        "image": image,
        "args": [
            "bake", "-f", cell.file, "--platform", cell.platform, "--store", fleet.store, "--json", "--progress",
            "plain", *([] if fleet.verify else ["--no-verify"]),
        ],
        "workingDir": "/bakes",
        "securityContext": {"privileged": True},
        "resources": {"requests": {"cpu": "2", "memory": "4Gi"}},
        "volumeMounts": bakes,
    }  # fmt: skip
    pod = {
        "serviceAccountName": "parbake",
        "restartPolicy": "Never",
        "initContainers": [fetch],
        "containers": [bake],
        "volumes": [{"name": "bakes", "emptyDir": {}}],
    }
    labels = {"app.kubernetes.io/name": "parbake", "parbake/fleet": fleet.name}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "generateName": f"{_job_name(fleet.name, cell.name)}-",
            "namespace": namespace,
            "labels": labels,
            "annotations": {"parbake/cell": cell.name},
        },
        "spec": {
            "backoffLimit": 2,
            "activeDeadlineSeconds": 7200,
            "ttlSecondsAfterFinished": 86400,
            # Exit codes 2 and 3 say that another try would end the same (docs/reference/errors.md).
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "bake", "operator": "In", "values": [2, 3]},
                    }
                ]
            },
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _job_name(fleet: str, cell: str) -> str:
    """Return a name for a cell's Job that Kubernetes takes; of one that is cut short, no other cell has it."""
    plain = re.sub(r"[^a-z0-9]+", "-", f"{fleet}-{cell}".lower()).strip("-")
    room = _LONGEST_NAME - len("-12345")  # generateName adds five
    if len(plain) <= room:
        return plain
    return f"{plain[: room - 9]}-{hashlib.sha256(cell.encode()).hexdigest()[:8]}"
