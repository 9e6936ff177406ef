"""Nouns, errors and events; subprocesses, signals and work folders: what every other wing uses."""
