"""Networks: denoisers, encoders and decoders, and the layers they share.

In: images or vectors, and the time where they denoise.
Out: a tensor of the shape that the model needs.
"""
