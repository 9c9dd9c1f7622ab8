"""Noise schedules: tables of alpha_bar over the discrete times 0 ... T.

In: T and the numbers of a paper's formula.
Out: a NoiseSchedule, float64 inside.
"""
