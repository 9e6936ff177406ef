"""Write what the Helm chart takes from the program, and render it; `make chart` runs it.

``values.schema.json`` is the Bakefile's JSON Schema with the chart's own values around it, so that helm refuses a typo
by its key; ``files/rights.yaml`` are the rules of RBAC (``parbake.rollouts.rights``).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from parbake.bakefile import schema
from parbake.core import run
from parbake.core.errors import EnvironmentProblem, ParbakeError
from parbake.rollouts.rights import RIGHTS

ROOT: Final = Path(__file__).parents[1]
CHART: Final = ROOT / "deploy" / "chart"
HELM: Final = ROOT / ".venv" / "newer" / "usr" / "bin" / "helm"
"""Where ``tools/fetch-newer`` puts it."""

_MADE: Final = (
    "# Made by `make chart` from src/parbake/rollouts/rights.py. `named`: of what the Bakefile's targets name.\n"
)
_NAME: Final = {"type": "string", "pattern": r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", "maxLength": 253}
_ROLE: Final = {"type": "string", "pattern": "^(arn:aws[a-z-]*:iam::[0-9]{12}:role/.+)?$"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_FREE: Final = {"type": "object"}
_QUANTITY: Final = {"type": "string", "pattern": "^[0-9]+([.][0-9]+)?([KMGTP]i?)?$"}
_DEFAULTED: Final = ("version", "images")
"""Keys that a Bakefile must have, and the chart writes where values do not."""


def _section(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _list_of(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


_OWN: Final[dict[str, Any]] = {
    "image": {"type": "string", "pattern": "^[^@ ]+@sha256:([0-9a-f]{64}|DIGEST)$"},
    "role": _ROLE,
    "schedule": {"type": "string", "pattern": r"^(@[a-z]+|(\S+ ){4}\S+)?$"},
    "every": _COUNT,
    "deadline": {"type": "integer", "minimum": 60},
    "files": {
        "type": "object",
        "propertyNames": {"pattern": "^[A-Za-z0-9_-][-._A-Za-z0-9]*$", "not": {"enum": ["parbake.yaml", "artefacts"]}},
        "additionalProperties": {"type": "string"},
    },
    "pullSecrets": _list_of(_NAME),
    "volume": _section(persistent={"type": "boolean"}, size=_QUANTITY, storageClass={"type": "string"}),
    "resources": _FREE,
    "nodeSelector": _FREE,
    "tolerations": _list_of(_FREE),
    "env": _list_of({**_FREE, "required": ["name"]}),
    "secrets": _list_of(
        {**_section(name=_NAME, at={"type": "string", "pattern": "^/[^:]+$"}), "required": ["name", "at"]}
    ),
    "privileged": {"type": "boolean"},
    "network": _section(
        policy={"type": "boolean"},
        ports=_list_of({"type": "integer", "minimum": 1, "maximum": 65535}),
        metricsFrom=_list_of(_FREE),
    ),
    "fleet": _section(
        engine={"type": "string", "pattern": "^([^ :/]+:[0-9]+)?$"},
        namespace={"type": "string", "minLength": 1},
        key=_NAME,
        certificate=_NAME,
        control=_COUNT,
        place=_COUNT,
        roll=_COUNT,
        bake=_section(atLeast=_COUNT, atMost=_COUNT),
        roles=_section(**dict.fromkeys(("control", "place", "roll", "bake"), _ROLE)),
    ),
    "agent": _section(image={"type": "string", "pattern": "^([^@ ]+@sha256:[0-9a-f]{64})?$"}, wait={"type": "boolean"}),
    "alerts": {"type": "boolean"},
    "global": _FREE,  # helm's own, of charts that have this one below them
}


def values_schema() -> dict[str, Any]:
    """Return the JSON Schema of the chart's values."""
    of_bakefile = dict(schema())
    dialect, definitions = of_bakefile.pop("$schema"), of_bakefile.pop("$defs")
    of_bakefile["required"] = [key for key in of_bakefile["required"] if key not in _DEFAULTED]
    return {"$schema": dialect, "$defs": definitions, **_section(**_OWN, bakefile=of_bakefile), "required": ["image"]}


def rights_file() -> str:
    """Return the rules of RBAC as the chart's templates read them: rules, of which some want names."""
    lines = [_MADE, f"order: {json.dumps([*RIGHTS])}\n"]
    for kind, found in RIGHTS.items():
        lines.append(f"{kind}:\n")
        for each in found:
            said = {**each.rule(), **({"named": True} if each.named else {})}
            said.pop("resourceNames", None)
            lines.append(f"  - {json.dumps(said)}\n")
    return "".join(lines)


def made() -> dict[Path, str]:
    """Return the files of the chart that follow from the program."""
    return {
        CHART / "values.schema.json": json.dumps(values_schema(), indent=2) + "\n",
        CHART / "files" / "rights.yaml": rights_file(),
    }


def write() -> None:
    """Write what follows from the program, as ``make docs`` does too."""
    for path, text in made().items():
        path.write_text(text)


def helm(*arguments: str) -> str:
    """Run helm; return what it says. Raises EnvironmentProblem where it is not there, CommandFailed."""
    if not HELM.exists():
        raise EnvironmentProblem("helm is not here", hint="`make setup` fetches it (packages.newer)")
    return run.run([str(HELM), *arguments]).text


def render(*arguments: str, release: str = "parbake", namespace: str = "parbake") -> str:
    """Return the chart's objects, as YAML; ``arguments`` are those of ``helm template``."""
    return helm("template", release, str(CHART), "--namespace", namespace, *arguments)


def objects(*arguments: str, **where: str) -> list[dict[str, Any]]:
    """Return the chart's objects, read."""
    return [each for each in YAML(typ="safe").load_all(render(*arguments, **where)) if each]


def main() -> int:
    """Write what is made, and render the chart with its default values into ``build/chart.yaml``."""
    write()
    try:
        text = render()
    except ParbakeError as error:
        sys.stderr.write(f"{error.message}\n  next: {error.hint}\n")
        return error.exit_code
    target = ROOT / "build" / "chart.yaml"
    target.parent.mkdir(exist_ok=True)
    target.write_text(text)
    sys.stdout.write(f"{target.relative_to(ROOT)}: {text.count('kind: ')} objects\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
