_base_ = './resnet50-scsa_1xb128_in1k.py'
# The official ResNet-101 has dropout on the attention.
plugins = [
    dict(cfg=dict(type='mmattn.SCSA', attn_drop=0.1), position='after_conv2')
]
model = dict(backbone=dict(depth=101, plugins=plugins))
