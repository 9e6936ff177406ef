"""What cold starts cost: pure arithmetic on sizes, times and prices. Nothing is asked and nothing is measured here."""

from parbake.aws.costs.advise import SPEEDS, Advice, Remedy, Situation, Speeds, advise
from parbake.aws.costs.prices import Prices, load_prices
from parbake.aws.costs.savings import Savings, savings

__all__ = [
    "SPEEDS",
    "Advice",
    "Prices",
    "Remedy",
    "Savings",
    "Situation",
    "Speeds",
    "advise",
    "load_prices",
    "savings",
]
