_base_ = [
    '../_base_/detectors/faster-rcnn_r50_fpn_1x_flir.py',
    '../_base_/attention/se-bn.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
