"""The programs that build images: buildah, docker buildx, podman, behind one small interface.

buildah and podman get a store of their own in parbake's cache, so that nothing of the machine's own images is touched
and build steps are cached from one build to the next. They run in private mount and PID namespaces: however parbake
dies, no mount and no process of a ``RUN`` step stays behind, and what they left in their store is removed by the next
build. ``RUN`` steps have a network of their own where that can be had (``network.py``).
docker keeps its own store: the daemon's.
"""

from __future__ import annotations

from parbake.core.errors import CommandFailed, DeadlineExceeded, EnvironmentProblem
from parbake.images.build.common import BuildPlace, BuildTool, Request, last_line
from parbake.images.build.containers import Containers, open_store
from parbake.images.build.docker import DockerTool

__all__ = ["STORES", "BuildPlace", "BuildTool", "Containers", "DockerTool", "Request", "choose"]

STORES = ("buildah", "podman")
"""Folders of the cache that hold the stores of the tools of these names."""


def choose(place: BuildPlace) -> BuildTool:
    """Return the first tool that is there and works, and say so; raises EnvironmentProblem with each one's reason."""
    reasons = []
    for name, ready in (("buildah", _ready_buildah), ("docker buildx", _ready_docker), ("podman", _ready_podman)):
        try:
            tool = ready(place)
        except (EnvironmentProblem, CommandFailed, DeadlineExceeded) as error:
            reasons.append(f"{name}: {last_line(error)}")
            continue
        passed_over = f" ({'; '.join(reasons)})" if reasons else ""
        place.events.note(f"building with {tool.name}{passed_over}")
        return tool
    raise EnvironmentProblem(
        "no program here can build images:\n" + "\n".join(f"  {reason}" for reason in reasons),
        hint="apt-get install buildah, or take `build` out of the Bakefile and build the image elsewhere",
    )


def _ready_buildah(place: BuildPlace) -> BuildTool:
    return open_store("buildah", place)


def _ready_docker(place: BuildPlace) -> BuildTool:
    tool = DockerTool(place)
    tool.ready()
    return tool


def _ready_podman(place: BuildPlace) -> BuildTool:
    return open_store("podman", place)
