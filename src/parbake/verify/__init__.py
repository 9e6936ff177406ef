"""Verification: prove that every image starts from the artefact, with the registry cut off."""

from parbake.verify.pull import Pulled, compare_pull
from parbake.verify.verify import Verification, damaged, verify

__all__ = ["Pulled", "Verification", "compare_pull", "damaged", "verify"]
