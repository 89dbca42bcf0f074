_base_ = '../resnet50-gsca_4xb64-coslr-lbs_in1k.py'
plugins = [
    dict(cfg=dict(type='mmattn.GSCA', alpha=1.5), position='before_act2')
]
model = dict(backbone=dict(plugins=plugins))
