# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What the tools print as one line instead of a traceback."""


class ConfigError(ValueError):
    """A config asks for what cannot be; the message says what can."""


class DataError(ValueError):
    """Data cannot be read; the message names the file."""
