# After the depthwise convolution: the SCSA paper's 4.07M fit only that width.
plugins = [
    dict(cfg=dict(type='mmattn.CBAM', min_width=8), position='after_conv2')
]
