# The papers do not say where in RepVGG; behind the activation, like SCSA.
plugins = [
    dict(
        cfg=dict(type='mmattn.ECA', kernel_rule='two_sizes'),
        position='after_conv1',
    )
]
