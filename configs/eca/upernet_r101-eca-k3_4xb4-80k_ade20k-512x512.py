_base_ = './upernet_r50-eca-k3_4xb4-80k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')
    )
)
