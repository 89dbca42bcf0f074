# The papers do not say where in RepVGG; behind the activation, like SCSA.
plugins = [
    dict(cfg=dict(type='mmattn.CoordAttention'), position='after_conv1')
]
