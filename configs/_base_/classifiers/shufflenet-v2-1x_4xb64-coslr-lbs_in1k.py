_base_ = './resnet50_4xb64-coslr-lbs_in1k.py'
model = dict(
    backbone=dict(_delete_=True, type='mmattn.ShuffleNetV2'),
    head=dict(in_channels=1024),
)
