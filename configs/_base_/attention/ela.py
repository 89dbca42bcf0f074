# At the width of the 3x3 convolution, the only one that the SCSA paper's
# parameter counts fit.
plugins = [dict(cfg=dict(type='mmattn.ELA'), position='after_conv2')]
