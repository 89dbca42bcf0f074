# Where SENet puts it: before the shortcut addition, at the output width. Two
# layers without bias, which the GSCA paper's counts fit (+2.51M on ResNet-50).
plugins = [dict(cfg=dict(type='mmattn.SE'), position='after_conv3')]
