# Before the shortcut addition.
plugins = [
    dict(cfg=dict(type='mmattn.ShuffleAttention'), position='after_conv3')
]
