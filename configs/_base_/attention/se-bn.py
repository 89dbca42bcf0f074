# The variant with a batch norm between the layers, which the SCSA paper's
# counts fit (49.30M on ResNet-101, against 49.29M without).
plugins = [
    dict(
        cfg=dict(type='mmattn.SE', norm_cfg=dict(type='BN')),
        position='after_conv3',
    )
]
