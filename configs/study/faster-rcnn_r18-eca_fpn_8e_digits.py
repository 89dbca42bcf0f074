_base_ = [
    '../_base_/detectors/faster-rcnn_r18-w24_fpn_8e_digits.py',
    '../_base_/attention/eca_basic-block.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
