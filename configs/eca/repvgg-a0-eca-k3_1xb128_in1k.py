_base_ = [
    '../_base_/classifiers/repvgg-a0_1xb128_in1k.py',
    '../_base_/attention/eca-k3_repvgg.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
