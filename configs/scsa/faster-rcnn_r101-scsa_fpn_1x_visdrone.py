_base_ = './faster-rcnn_r50-scsa_fpn_1x_visdrone.py'
model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')
    )
)
