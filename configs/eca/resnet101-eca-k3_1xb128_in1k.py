_base_ = './resnet50-eca-k3_1xb128_in1k.py'
model = dict(backbone=dict(depth=101))
