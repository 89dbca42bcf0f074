_base_ = [
    '../_base_/classifiers/resnet50_4xb64-coslr-lbs_in1k.py',
    '../_base_/attention/cbam.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
