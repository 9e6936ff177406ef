"""Fleets: many Bakefiles for some architectures, baked on many machines.

``file`` is what users write, ``cells`` and ``matrix`` what follows from it; all of that is pure and needs no engine.
"""
