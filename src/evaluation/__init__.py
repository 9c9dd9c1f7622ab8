"""Numbers of one model: samples, likelihood, latents, losses.

In: a checkpoint and the settings of ``conf/evaluate.yaml``.
Out: a card of measurements, each with its error and context.
"""
