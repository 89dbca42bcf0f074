_base_ = [
    '../_base_/classifiers/resnet18-w24_30e_digits.py',
    '../_base_/attention/none.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
