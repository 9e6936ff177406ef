"""What cold starts cost: pure arithmetic on sizes, times and prices. Nothing is asked and nothing is measured here."""

from parbake.aws.costs.advise import Advice, Remedy, Situation, advise, estimate, raised_hour
from parbake.aws.costs.prices import Prices, load_prices
from parbake.aws.costs.rates import DRIVES, MB, SPEEDS, Pull, Speeds, VolumeKind, known_pulls, own_pull

__all__ = [
    "DRIVES", "MB", "SPEEDS", "Advice", "Prices", "Pull", "Remedy", "Situation", "Speeds", "VolumeKind", "advise",
    "estimate", "known_pulls", "load_prices", "own_pull", "raised_hour",
]  # fmt: skip
