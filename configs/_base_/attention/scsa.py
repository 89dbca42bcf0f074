# The official ResNet: after the activation of the 3x3 convolution.
plugins = [dict(cfg=dict(type='mmattn.SCSA'), position='after_conv2')]
