"""Verification: prove that every image starts from the artefact, with the registry cut off."""

from parbake.verify.integrity import damaged
from parbake.verify.pull import Pulled, compare_pull
from parbake.verify.verify import Verification, verify

__all__ = ["Pulled", "Verification", "compare_pull", "damaged", "verify"]
