"""A cluster as ``kubectl`` reaches it: its contexts, its logins, its proxies. Errors are those of parbake.

Only what rollouts need: which versions are served, one object, a list, and a merge patch that fails when the object is
no longer the one that was read (Kubernetes API conventions, "Concurrency Control and Consistency"), or that the server
only judges ("Dry-run").
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from parbake.core.errors import CommandFailed, InputError, ParbakeError, RolloutError, TargetMoved
from parbake.core.run import Result, run


class _NotFound(InputError):
    """The cluster has no such thing; other wrong input, such as a context that does not exist, is none of that."""

    json_name = InputError.json_name


_SECONDS = 60.0
_PAGE, _MOST_PODS = 250, 150_000
"""Pods of an answer, and of a cluster (Kubernetes, "Considerations for large clusters")."""
_FROM_SERVER = re.compile(r"(?:error|Error from server)(?: \((\w+)\))?: (.*)", re.DOTALL)

# How validating admission policies and webhooks say no; the code and the reason are theirs to choose (often Forbidden).
_DENIED = re.compile(r"denied (?:the )?request")
_POLICY = "you have the right to write: change what the policy forbids, or ask its owners"
# A webhook that writes elsewhere cannot be asked without writing (``sideEffects``).
_NO_DRY_RUN = "does not support dry run"
_WARNING = re.compile(r"^Warning: (.*)$", re.MULTILINE)

# What kubectl says, by the server's reason or by words of the message: our error, its text, and the next step.
_TRANSLATIONS: tuple[tuple[str, type[ParbakeError], str, str], ...] = (
    (_DENIED.pattern, RolloutError, "a policy of the cluster refuses the change: {message}", _POLICY),
    ("NotFound", _NotFound, "{where}: {message}", "check the name"),
    ("Forbidden", RolloutError, "{where}: {message}", "ask the cluster's administrators for that permission"),
    ("Unauthorized", RolloutError, "{where}: the cluster does not know you", "log in to the cluster again"),
    ("Conflict", TargetMoved, "{where}: somebody else changed it in the meantime", ""),
    ("TooManyRequests", RolloutError, "{where}: the cluster is too busy: {message}", "run the same command again"),
    ("context", InputError, "{cluster}: {message}", "`kubectl config get-contexts` lists the contexts"),
    ("have a resource type", InputError, "{where}: {message}", "is Karpenter installed there?"),
    ("is invalid", RolloutError, "the cluster refuses the change: {message}", "correct the node class, and run again"),
    ("", RolloutError, "{where}: {message}", "run kubectl by hand to see more"),
)


class Cluster:
    """One context of kubectl (empty: the current one)."""

    def __init__(self, context: str = "") -> None:
        self.context = context
        self._served: dict[str, tuple[str, ...]] = {}

    def __str__(self) -> str:
        return f"context {self.context}" if self.context else "kubectl's current context"

    def served(self, group: str) -> tuple[str, ...]:
        """Return the versions that are served of an API group; empty when it has none."""
        if group not in self._served:
            try:
                document = self._json(["get", "--raw", f"/apis/{group}"])
            except _NotFound:
                document = {}
            self._served[group] = tuple(each["version"] for each in document.get("versions", []))
        return self._served[group]

    def get(self, resource: str, name: str) -> dict[str, Any]:
        """Return one object of the cluster's scope, with what fields its managers own.

        ``resource`` is ``plural.version.group``. Raises InputError that lists what there is, when it is not there.
        """
        try:
            return self._json(["get", resource, name, "-o", "json", "--show-managed-fields"])
        except _NotFound as error:
            there = ", ".join(each["metadata"]["name"] for each in self.items(resource)) or "none"
            raise InputError(
                f"{self}: there is no {resource.partition('.')[0]} {name!r}", hint=f"there are: {there}"
            ) from error

    def items(self, resource: str, *options: str) -> list[dict[str, Any]]:
        """Return every object of a resource; ``options`` are kubectl's, such as a selector."""
        found: list[dict[str, Any]] = self._json(["get", resource, "-o", "json", *options])["items"]
        return found

    def each_pod(self, namespace: str = "") -> Iterator[dict[str, Any]]:
        """Yield the pods of a namespace, or of all, a few hundred of them in memory at a time.

        Raises RolloutError for more pods than Kubernetes supports in a cluster: they are made up.
        """
        path = f"/api/v1/{f'namespaces/{quote(namespace, safe="")}/' if namespace else ''}pods?limit={_PAGE}"
        go_on, left = "", _MOST_PODS // _PAGE
        while left:
            document = self._json(["get", "--raw", path + (f"&continue={quote(go_on, safe='')}" if go_on else "")])
            yield from (each for each in document.get("items") or () if isinstance(each, dict))
            go_on, left = str((document.get("metadata") or {}).get("continue") or ""), left - 1
            if not go_on:
                return
        raise RolloutError(f"{self}: there are more than {_MOST_PODS} pods", hint="name the namespaces that count")

    def ask(
        self, resource: str, found: Mapping[str, Any], change: Mapping[str, Any], *, manager: str
    ) -> tuple[str, ...]:
        """Let the server judge a change without writing it: schema, policies, webhooks, rights; return its warnings.

        Raises as ``patch`` does, but for an object that has changed since: that is decided when it is written.
        """
        name, text = found["metadata"]["name"], json.dumps(change)
        patch = ["patch", resource, name, "--type=merge", f"--field-manager={manager}", "-p", text, "-o", "name"]
        try:
            return tuple(_WARNING.findall(self._run([*patch, "--dry-run=server"]).stderr))
        except RolloutError as error:
            if _NO_DRY_RUN not in error.message:
                raise
            return ("a webhook cannot be asked in advance: whether it accepts the change shows when it is written",)

    def patch(self, resource: str, found: Mapping[str, Any], change: Mapping[str, Any], *, manager: str) -> None:
        """Merge a change into the object that was read; raises TargetMoved when it has changed since."""
        metadata = {**change.get("metadata", {}), "resourceVersion": found["metadata"]["resourceVersion"]}
        text = json.dumps({**change, "metadata": metadata})
        name = found["metadata"]["name"]
        self._run(["patch", resource, name, "--type=merge", f"--field-manager={manager}", "-p", text, "-o", "name"])

    def knows(self, resource: str, field: str) -> bool:
        """Whether a resource (``plural.version.group``) has a field, such as ``spec.userData``.

        An unknown field of a patch would be dropped in silence.
        """
        plural, version, group = resource.split(".", 2)
        try:
            self._run(["explain", f"{plural}.{field}", f"--api-version={group}/{version}"])
        except ParbakeError as error:
            if "does not exist" in error.message:
                return False
            raise
        return True

    def _json(self, arguments: list[str]) -> dict[str, Any]:
        output = self._run(arguments).stdout
        try:
            document: dict[str, Any] = json.loads(output)
        except ValueError:
            raise RolloutError(f"{self}: kubectl {arguments[0]} printed no JSON: {output[:200]!r}") from None
        return document

    def _run(self, arguments: list[str]) -> Result:
        context = ["--context", self.context] if self.context else []
        command = ["kubectl", *arguments, *context, f"--request-timeout={_SECONDS / 2:.0f}s"]
        try:
            # Login plugins of kubeconfig files (aws, gcloud, kubelogin) read variables of their own: kubectl gets ours.
            return run(command, timeout=_SECONDS, env={**os.environ, "LC_ALL": "C.UTF-8"})
        except CommandFailed as error:
            raise self._translated(arguments, error) from error

    def _translated(self, arguments: list[str], error: CommandFailed) -> Exception:
        match = _FROM_SERVER.search(error.output)
        reason, message = (match[1] or "", match[2].strip()) if match else ("", error.output.strip())
        where = f"{self}: {' '.join(arguments[:3])}"
        kind, text, hint = next(
            (kind, text, hint)
            for sign, kind, text, hint in _TRANSLATIONS
            if sign in {reason, ""} or re.search(sign, message)
        )
        return kind(text.format(where=where, cluster=self, message=message), hint=hint)
