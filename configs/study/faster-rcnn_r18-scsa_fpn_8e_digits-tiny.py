_base_ = [
    '../_base_/detectors/faster-rcnn_r18-w24_fpn_8e_digits-tiny.py',
    '../_base_/attention/scsa_basic-block.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
