"""Edit manifests in a repository: comments, order and quoting stay, the result is a patch or a commit.

``find`` and ``the_one`` say where an object (or a kustomize patch of it) is described; ``change`` applies a JSON merge
patch there, ``set_value`` sets one value of a Helm values file by its path. All of these are pure: text to text. An
``Edit`` holds both texts and shows their difference; ``Repository`` commits it on a branch.
"""

from parbake.rollouts.gitops.edit import merged, read
from parbake.rollouts.gitops.objects import (
    ManifestPlace,
    change,
    find,
    parse_path,
    patched_values,
    set_value,
    the_one,
    value_at,
)
from parbake.rollouts.gitops.repository import Edit, Repository, inside, write

__all__ = [
    "Edit", "ManifestPlace", "Repository", "change", "find", "inside", "merged", "parse_path", "patched_values", "read",
    "set_value", "the_one", "value_at", "write",
]  # fmt: skip
