_base_ = [
    '../_base_/detectors/retinanet_r18-w24_fpn_15e_digits.py',
    '../_base_/attention/none.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
