_base_ = './faster-rcnn_r50-ca_fpn_1x_flir.py'
model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')
    )
)
