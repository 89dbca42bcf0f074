_base_ = [
    '../_base_/classifiers/resnext50-32x4d_4xb64-coslr-lbs_in1k.py',
    '../_base_/attention/gsca.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
