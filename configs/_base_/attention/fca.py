# Before the shortcut addition; every stage is pooled to its size at 224
# pixels, as in the official code, whatever the size of the image.
plugins = [
    dict(
        cfg=dict(type='mmattn.FCA', dct_size=size),
        position='after_conv3',
        stages=[i == stage for i in range(4)],
    )
    for stage, size in enumerate((56, 28, 14, 7))
]
