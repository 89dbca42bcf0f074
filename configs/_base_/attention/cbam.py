# Before the shortcut addition, at the output width (+2.51M on ResNet-50).
plugins = [dict(cfg=dict(type='mmattn.CBAM'), position='after_conv3')]
