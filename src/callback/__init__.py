"""Things that watch a training: checkpoints, the average, samples, progress.

In: Lightning's hooks, and what is built from ``conf/callback``.
Out: files of the run directory, logged numbers, lines on the terminal.
"""
