# GSCA and a channel attention, each at its own place.
_base_ = './fca.py'
plugins = [
    dict(cfg=dict(type='mmattn.GSCA'), position='before_act2'),
    *_base_.plugins,
]
