_base_ = '../faster-rcnn_r50-gsca_fpn_1x_coco.py'
plugins = [
    dict(cfg=dict(type='mmattn.GSCA', alpha=1.0), position='before_act2')
]
model = dict(backbone=dict(plugins=plugins))
