_base_ = './faster-rcnn_r50-fca_fpn_1x_exdark.py'
model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')
    )
)
