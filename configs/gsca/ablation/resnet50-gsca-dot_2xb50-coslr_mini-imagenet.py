_base_ = './resnet50-gsca_2xb50-coslr_mini-imagenet.py'
plugins = [
    dict(
        cfg=dict(type='mmattn.GSCA', similarity='dot'), position='before_act2'
    )
]
model = dict(backbone=dict(plugins=plugins))
