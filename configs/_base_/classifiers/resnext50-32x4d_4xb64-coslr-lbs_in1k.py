_base_ = './resnet50_4xb64-coslr-lbs_in1k.py'
model = dict(backbone=dict(type='mmattn.ResNeXt', groups=32, base_width=4))
