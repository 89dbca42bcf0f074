# Copyright (c) mmattn contributors. Licensed under Apache-2.0.
"""What `mmengine.hub.get_model('mmattn::...')` expects of a package."""

from mmattn import registry


def register_all_modules(init_default_scope: bool = True) -> None:
    """Import whatever registers a class of mmattn.

    The look-up of a type does that, too; mmengine calls this before.

    Args:
        init_default_scope: As in the frameworks, but without effect: the
            scope of a config of mmattn is that of its framework.
    """
    for value in vars(registry).values():
        if isinstance(value, registry.Registry) and value.scope == 'mmattn':
            value.import_from_location()
