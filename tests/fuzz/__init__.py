"""Fuzzing of everything that reads what a registry sends: ``make fuzz``."""
