_base_ = './faster-rcnn_r50-se-bn_fpn_1x_voc0712.py'
model = dict(
    backbone=dict(
        depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')
    )
)
