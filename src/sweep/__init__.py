"""Studies: which runs come next, given what came out of the others.

In: a search space in Hydra's syntax, and the launcher.
Out: trials in a storage of Optuna, each one job of the sweep directory.
"""
