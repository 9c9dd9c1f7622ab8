"""Jobs: runs as processes of this machine, of Slurm or of Ray.

In: the overrides of each run, and where it may run.
Out: run directories, and what became of each job.
"""
