# The paper does not say where; behind the activation, as in ResNet.
plugins = [dict(cfg=dict(type='mmattn.SCSA'), position='after_conv1')]
