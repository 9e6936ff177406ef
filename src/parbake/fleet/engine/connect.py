"""How a machine finds the engine: by Temporal's own variables, else by what `parbake fleet up` left in its folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import TemporalError

from parbake.core.errors import InputError
from parbake.fleet.engine.failures import unreachable, wrong_settings
from parbake.fleet.engine.sealing import converter, read_keys

__all__ = ["ADDRESS_FILE", "KEY_FILE", "Client", "Engine", "connect"]

ADDRESS_FILE, KEY_FILE = "server.json", "key"


@dataclass(frozen=True, slots=True)
class Engine:
    """Where the engine is. ``state`` is the folder of `parbake fleet up`, for what the environment does not say."""

    state: Path

    @property
    def key(self) -> Path:
        """The file with the fleet's key."""
        return Path(os.environ.get("PARBAKE_FLEET_KEY") or self.state / KEY_FILE)

    @property
    def address(self) -> str:
        """Where the server of `parbake fleet up` listens; empty where there is none."""
        try:
            return str(json.loads((self.state / ADDRESS_FILE).read_text())["address"])
        except (OSError, ValueError, KeyError):
            return ""


async def connect(engine: Engine) -> Client:
    """Connect with the address, namespace and certificates that the environment says, and the fleet's key.

    Raises EngineUnreachable where nobody answers, InputError where nothing says who should.
    """
    sealed = converter(read_keys(engine.key))
    try:
        config = ClientConfig.load_client_connect_config()
    except (RuntimeError, ValueError) as error:
        raise wrong_settings(error) from error
    if "target_host" not in config:
        if not engine.address:
            raise InputError(
                "nothing says where the engine is",
                hint="run `parbake fleet up` beside the fleet's file, or set TEMPORAL_ADDRESS",
            )
        config["target_host"] = engine.address
    try:
        return await Client.connect(**config, data_converter=sealed)
    except ValueError as error:
        raise wrong_settings(error) from error
    except (TemporalError, RuntimeError) as error:
        raise unreachable(config["target_host"], error) from error
