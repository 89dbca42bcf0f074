# ResNet-18 and -34, which the paper does not cover: after the norm of the
# first 3x3 convolution, the one that changes resolution.
plugins = [dict(cfg=dict(type='mmattn.GSCA'), position='before_act1')]
