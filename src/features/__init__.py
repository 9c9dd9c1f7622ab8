"""Feature extractors: images into vectors in which samples are compared.

In: images (B, C, H, W) uint8.
Out: vectors (B, d), under a key that hashes all they depend on.
"""
