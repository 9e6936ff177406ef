"""Layers in processes of their own: as many as there are cores write into one volume, since none needs the others.

``pool`` starts them and hands out layers, ``worker`` is what runs in them, ``wire`` is what both say to each other.
"""
