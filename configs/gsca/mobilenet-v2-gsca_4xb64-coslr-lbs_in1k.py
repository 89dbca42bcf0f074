_base_ = [
    '../_base_/classifiers/mobilenet-v2_4xb64-coslr-lbs_in1k.py',
    '../_base_/attention/gsca_mobilenet-v2.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
