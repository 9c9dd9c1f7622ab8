"""Numbers of many runs: what differs, what compares, what is best.

In: run directories, read as plain values.
Out: pooled numbers side by side, and the reasons why some are not ranked.
"""
