# ResNet-18 and -34: between the two 3x3 convolutions, like SCSA.
plugins = [
    dict(cfg=dict(type='mmattn.CoordAttention'), position='after_conv1')
]
