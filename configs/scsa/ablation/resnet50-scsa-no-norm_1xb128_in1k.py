_base_ = '../resnet50-scsa_1xb128_in1k.py'
plugins = [
    dict(cfg=dict(type='mmattn.SCSA', norm=None), position='after_conv2')
]
model = dict(backbone=dict(plugins=plugins))
