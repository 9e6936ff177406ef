"""Edit manifests in a repository: comments, order and quoting stay, the result is a patch or a commit.

``find`` and ``the_one`` say where an object (or a kustomize patch of it) is described; ``change`` applies a JSON merge
patch there, ``set_value`` sets one value of a Helm values file by its path. All of these are pure: text to text. An
``Edit`` holds both texts and shows their difference; ``Repository`` commits edits on a branch.
"""

from parbake.rollouts.gitops.edit import merge, merged, put, read, rewrite
from parbake.rollouts.gitops.objects import (
    ManifestPlace,
    change,
    find,
    operations,
    parse_path,
    patched_values,
    set_value,
    the_one,
    value_at,
)
from parbake.rollouts.gitops.repository import Commit, Edit, Repository, inside, patch, write

__all__ = [
    "Commit",
    "Edit",
    "ManifestPlace",
    "Repository",
    "change",
    "find",
    "inside",
    "merge",
    "merged",
    "operations",
    "parse_path",
    "patch",
    "patched_values",
    "put",
    "read",
    "rewrite",
    "set_value",
    "the_one",
    "value_at",
    "write",
]
