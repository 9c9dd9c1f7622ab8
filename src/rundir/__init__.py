"""What lies on the disk and who may touch it: run directory, checkpoints, locks.

In: a directory, a checkpoint, a configuration to keep.
Out: files that are whole or absent, and models read back from them.
"""
