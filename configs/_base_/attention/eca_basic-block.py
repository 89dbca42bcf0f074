# ResNet-18 and -34: before the shortcut addition, as in the deeper ones.
plugins = [dict(cfg=dict(type='mmattn.ECA'), position='after_conv2')]
