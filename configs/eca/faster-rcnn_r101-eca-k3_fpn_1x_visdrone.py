_base_ = './faster-rcnn_r50-eca-k3_fpn_1x_visdrone.py'
model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')
    )
)
