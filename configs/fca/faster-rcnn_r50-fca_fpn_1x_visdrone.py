_base_ = [
    '../_base_/detectors/faster-rcnn_r50_fpn_1x_visdrone.py',
    '../_base_/attention/fca.py',
]
model = dict(backbone=dict(plugins=_base_.plugins))
