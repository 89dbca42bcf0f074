_base_ = '../resnet50-scsa_1xb128_in1k.py'
plugins = [
    dict(
        cfg=dict(type='mmattn.SCSA', kernel_sizes=(3, 7)),
        position='after_conv2',
    )
]
model = dict(backbone=dict(plugins=plugins))
