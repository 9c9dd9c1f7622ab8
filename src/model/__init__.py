"""Generative models: a loss, and what else each of them can do.

In: images (B, C, H, W) in [-1, 1] and keyed noise.
Out: losses in nats or squared errors, samples, codes, likelihoods.
"""
