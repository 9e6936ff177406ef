"""How a machine finds the engine: by Temporal's own variables, else by what `parbake fleet up` left in its folder."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import TemporalError
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

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
        return self._said("address")

    @property
    def ui(self) -> str:
        """Where its pages are; empty where there are none."""
        return self._said("ui")

    def _said(self, what: str) -> str:
        try:
            return str(json.loads((self.state / ADDRESS_FILE).read_text())[what])
        except (OSError, ValueError, KeyError):
            return ""


async def connect(engine: Engine, *, metrics: str = "") -> Client:
    """Connect with the address, namespace and certificates that the environment says, and the fleet's key.

    What the library measures is served at ``metrics``, an address, if there is one. Raises EngineUnreachable where
    nobody answers, InputError where nothing says who should, or the address of metrics cannot be listened on.
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
        return await Client.connect(**config, data_converter=sealed, runtime=_exporting(metrics) if metrics else None)
    except ValueError as error:
        raise wrong_settings(error) from error
    except (TemporalError, RuntimeError) as error:
        raise unreachable(config["target_host"], error) from error


def _exporting(address: str) -> Runtime:
    """Return the library's part that serves its metrics for Prometheus, named as Prometheus wants it."""
    try:
        exporter = PrometheusConfig(
            bind_address=address, counters_total_suffix=True, unit_suffix=True, durations_as_seconds=True
        )
        return Runtime(telemetry=TelemetryConfig(metrics=exporter))
    except ValueError as error:
        raise InputError(
            f"--metrics {address}: {str(error).rpartition(': ')[2]}", hint="such as 127.0.0.1:9464, or 0.0.0.0:9464"
        ) from error
