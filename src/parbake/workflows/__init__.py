"""One module for each command: what parbake does, told from top to bottom."""
