"""A training run: put together, in order, interruptible, finite.

In: a composed configuration.
Out: model, data and Trainer, checked and ready to fit.
"""
