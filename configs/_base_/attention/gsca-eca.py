# GSCA and a channel attention, each at its own place.
plugins = [
    dict(cfg=dict(type='mmattn.GSCA'), position='before_act2'),
    dict(cfg=dict(type='mmattn.ECA'), position='after_conv3'),
]
