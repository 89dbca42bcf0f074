# The paper's heads of the three stages, 29 channels each at width x1.0. The
# depthwise convolution has no activation.
plugins = [
    dict(
        cfg=dict(type='mmattn.GSCA', num_heads=heads),
        position='before_act2',
        stages=[i == stage for i in range(3)],
    )
    for stage, heads in enumerate((2, 4, 8))
]
