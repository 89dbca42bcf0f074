_base_ = './resnet50-none_4xb64-coslr-lbs_in1k.py'
model = dict(backbone=dict(depth=152))
