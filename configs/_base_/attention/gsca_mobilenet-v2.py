# The paper's table 9: the heads of the seven lines of the network.
plugins = [
    dict(
        cfg=dict(type='mmattn.GSCA', num_heads=heads),
        position='before_act2',
        stages=[i == line for i in range(7)],
    )
    for line, heads in enumerate((1, 1, 2, 3, 4, 8, 15))
]
