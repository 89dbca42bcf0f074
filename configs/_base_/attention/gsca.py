# Position #2 of the paper's table 1: after the norm of the 3x3 convolution,
# before its activation. 64 channels a head, alpha = 2.
plugins = [dict(cfg=dict(type='mmattn.GSCA'), position='before_act2')]
