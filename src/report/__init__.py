"""Numbers into text and pictures; the only room that knows rich and matplotlib.

In: measurements, histories, images, tables as plain values.
Out: the terminal, Markdown, PNG files.
"""
