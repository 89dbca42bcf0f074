# The baseline: the same backbone class without plugins.
plugins = []
