_base_ = [
    '../_base_/classifiers/shufflenet-v2-1x_4xb64-coslr-lbs_in1k.py',
    '../_base_/attention/gsca_shufflenet-v2.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
