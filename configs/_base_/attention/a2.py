# Five blocks, behind every second block of the stages at 28 and 14 pixels: of
# the places for five, those whose parameters come nearest to the quoted ones.
plugins = [
    dict(
        cfg=dict(type='mmattn.DoubleAttention'),
        position='after_block',
        stages=(False, True, False, False),
        blocks=(1, 3),
    ),
    dict(
        cfg=dict(type='mmattn.DoubleAttention'),
        position='after_block',
        stages=(False, False, True, False),
        blocks=(1, 3, 5),
    ),
]
