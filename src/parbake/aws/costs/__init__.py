"""What cold starts cost: arithmetic on sizes, times and prices, and on what others measured. Nothing is asked here."""

from parbake.aws.costs.advise import Advice, Remedy, Situation, StreamedFile, advise, estimate, raised_hour, to_stream
from parbake.aws.costs.measured import MeasuredStarts, read_measured
from parbake.aws.costs.prices import Prices, load_prices
from parbake.aws.costs.rates import DRIVES, MB, SPEEDS, Pull, Speeds, VolumeKind, known_pulls, own_pull

__all__ = [
    "DRIVES", "MB", "SPEEDS", "Advice", "MeasuredStarts", "Prices", "Pull", "Remedy", "Situation", "Speeds",
    "StreamedFile", "VolumeKind", "advise", "estimate", "known_pulls", "load_prices", "own_pull", "raised_hour",
    "read_measured", "to_stream",
]  # fmt: skip
