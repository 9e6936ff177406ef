"""Prices are data: each with its unit and source, all with one date; users put in their own."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field, ValidationError

from parbake.core.errors import InputError
from parbake.core.model import Frozen

_OURS = Path(__file__).with_name("prices.json")


class Price(Frozen):
    """A price in the list's currency, what it is for, and who says so."""

    value: float = Field(ge=0)
    unit: str = ""
    source: str = "yours"


class Prices(Frozen):
    """A price list: that of a region on a day."""

    region: str
    date: str
    currency: str
    fsr_hour: Price
    initialization_gib: Price
    snapshot_gib_month: Price
    gp3_iops_month: Price
    gp3_throughput_month: Price
    node_hour: Price


def load_prices(path: Path | None = None, node_hour: float | None = None) -> Prices:
    """Return parbake's price list, with what a user's file (JSON, the same keys or plain numbers) says in its place.

    ``node_hour`` is what a node costs per hour, whatever else says. Raises InputError for a file that is none.
    """
    known = json.loads(_OURS.read_text())
    try:
        own = json.loads(path.read_text()) if path else {}
        for key, value in own.items():
            known[key] = {**known.get(key, {}), "value": value, "source": str(path)} if _number(value) else value
        prices = Prices.model_validate(known)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", hint="name a JSON file of prices") from None
    except (ValueError, TypeError, AttributeError, ValidationError) as error:
        lines = "; ".join(line.strip() for line in str(error).splitlines()[:4])
        raise InputError(
            f"{path} is not a valid price list: {lines}",
            hint=f"keys are {', '.join(known)}; `parbake advise --json` shows all",
        ) from None
    if node_hour is None:
        return prices
    return prices.model_copy(update={"node_hour": Price(value=node_hour, unit="node and hour")})


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
