_base_ = [
    '../_base_/classifiers/mobilenet-v2_1xb96_in1k.py',
    '../_base_/attention/eca-k3.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
