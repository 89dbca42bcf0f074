# Before the shortcut addition. In MobileNetV2, as in its authors' code, after
# the projection.
plugins = [dict(cfg=dict(type='mmattn.ECA'), position='after_conv3')]
