"""From words to objects: command line, composition, checks, messages.

In: what is typed, and the YAML of ``conf``.
Out: a checked configuration, objects, or one line that names the setting.
"""
