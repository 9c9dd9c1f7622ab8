"""Samplers: functions from noise to images that see nothing but a denoiser.

In: (x_t, t) -> an estimate of x_0, a noise schedule, x_T.
Out: x_0 (N, C, H, W).
"""
