_base_ = [
    '../_base_/classifiers/mobilenet-v2_1xb96_in1k.py',
    '../_base_/attention/cbam_mobilenet-v2.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
