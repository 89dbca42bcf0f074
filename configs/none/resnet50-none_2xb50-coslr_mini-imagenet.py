_base_ = [
    '../_base_/classifiers/resnet50_2xb50-coslr_mini-imagenet.py',
    '../_base_/attention/none.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
