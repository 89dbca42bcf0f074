_base_ = [
    '../_base_/classifiers/swin-tiny_1xb128_in1k.py',
    '../_base_/attention/none.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
