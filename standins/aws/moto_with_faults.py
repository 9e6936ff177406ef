"""moto with what ``Fleets`` and ``Shelves`` add to it, behind faults and late answers: for rollouts and prune.

Added: client tokens of launch template versions, which moto forgets. With ``Eventual``, Systems Manager shows a new
version of a parameter late, as it does while it checks an image's id. Not modelled: an id that it then refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from parbake.aws import clients
from standins.aws.iam_recorder import tags_in_moto
from standins.aws.interceptor import Between, refuse
from standins.policies import Tags


@dataclass
class Plain(Between):
    """Stands before the clients that parbake makes; those of tests themselves see all at once."""

    ours: set[int] = field(default_factory=set)
    tokens: dict[str, tuple[str, Any]] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    """How many more looks do not see a parameter's newest version."""

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand there from the next client on."""
        super().install(monkeypatch)
        make = clients._make

        def made(service: str, region: str, *more: Any) -> Any:
            client = make(service, region, *more)
            self.ours.add(id(client))
            return client

        monkeypatch.setattr(clients, "_make", made)
        clients.forget()

    def call(self, client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        """Answer one call."""
        if id(client) not in self.ours:
            return self._real(client, operation, arguments)
        return super().call(client, operation, arguments)

    def real(self, client: Any, service: str, operation: str, arguments: dict[str, Any]) -> Any:
        """Ask moto."""
        if operation == "CreateLaunchTemplateVersion":
            return self._once(client, operation, arguments)
        if self.eventual and operation in {"StartInstanceRefresh", "UpdateNodegroupVersion"}:
            wanted = arguments.get("launchTemplate") or arguments["DesiredConfiguration"]["LaunchTemplate"]
            named = {key.removeprefix("LaunchTemplate").lower(): value for key, value in wanted.items()}
            self.eventual.need_version(operation, named["id"], named["version"])
        if service == "ssm" and self.eventual:
            return self._parameter(client, operation, arguments, self.eventual.late)
        return self._real(client, operation, arguments)

    def _once(self, client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        said = repr(arguments)
        asked, answer = self.tokens.get(arguments["ClientToken"], ("", None))
        if answer is None:
            answer = self._real(client, operation, arguments)
            self.tokens[arguments["ClientToken"]] = (said, answer)
        elif asked != said:
            raise refuse("IdempotentParameterMismatch", "the client token was used with other parameters", operation)
        return answer

    def _parameter(self, client: Any, operation: str, arguments: dict[str, Any], late: int) -> Any:
        answer, name = self._real(client, operation, arguments), arguments.get("Name", "")
        if operation == "PutParameter":
            self.parameters[name] = late
        if not operation.startswith("Get") or self.parameters.get(name, 0) <= 0:
            return answer
        self.parameters[name] -= 1
        before = self._real(client, "GetParameterHistory", {"Name": name})["Parameters"][:-1]
        if not before:
            raise refuse("ParameterNotFound", f"Parameter {name} not found.", operation)
        return {"Parameter": before[-1]} if operation == "GetParameter" else {"Parameters": before}

    def tags_of(self, resource: str) -> Tags:
        """Return the tags of a resource of EC2."""
        return tags_in_moto(resource)


def stand(monkeypatch: pytest.MonkeyPatch) -> Plain:
    """Stand before what answers by now."""
    made = Plain()
    made.install(monkeypatch)
    return made
