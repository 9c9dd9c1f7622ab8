"""Work shared by ranks: blocks of images that do not depend on their number.

In: what is done to a block, or a model to sample from.
Out: all results in order, on every rank or on the first.
"""
