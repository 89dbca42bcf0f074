_base_ = [
    '../_base_/detectors/faster-rcnn_r50_fpn_1x_voc0712.py',
    '../_base_/attention/ca.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
