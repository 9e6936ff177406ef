"""Keep what is used in clouds, and let the rest go: decided purely, from what there is and from what refers to it."""

from parbake.retention.decide import Item, Rules, Verdict, decide

__all__ = ["Item", "Rules", "Verdict", "decide"]
