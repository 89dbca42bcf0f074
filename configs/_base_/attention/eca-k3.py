# The ECA that the SCSA paper compares with: kernel 3, below 96 channels 1.
plugins = [
    dict(
        cfg=dict(type='mmattn.ECA', kernel_rule='two_sizes'),
        position='after_conv3',
    )
]
