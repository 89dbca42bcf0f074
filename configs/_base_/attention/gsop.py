# GSoPNet1: in the last block of each stage, before the shortcut addition; in
# the first stage the official code reduces with stride 2. The last stage keeps
# the resolution: strides=(1, 2, 2, 1) in the backbone.
plugins = [
    dict(
        cfg=dict(type='mmattn.GSoP', stride=2),
        position='after_conv3',
        stages=(True, False, False, False),
        blocks=(-1,),
    ),
    dict(
        cfg=dict(type='mmattn.GSoP'),
        position='after_conv3',
        stages=(False, True, True, True),
        blocks=(-1,),
    ),
]
