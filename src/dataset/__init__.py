"""Data sets: one function for each, from a place on the disk to images.

In: a root and the name of a split.
Out: images (N, C, H, W) uint8 with labels, or known factors, where there are any.
"""
