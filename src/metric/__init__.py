"""Metrics as pure functions of arrays: samples, codes, probabilities.

In: features of real and generated images, or codes and factors.
Out: measurements with their errors.
"""
