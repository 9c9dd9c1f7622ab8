"""Where numbers go while they are made: CSV, W&B, TensorBoard.

In: what a run logs at each optimiser step.
Out: rows that are neither lost nor doubled by a restart.
"""
