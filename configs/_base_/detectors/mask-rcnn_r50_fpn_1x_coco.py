_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
model = dict(backbone=dict(type='mmattn.ResNet'))
auto_scale_lr = dict(enable=True)
randomness = dict(seed=0)
papers = dict(
    GSCA=dict(batch_size=8, lr=0.01),
    SCSA=dict(batch_size=2, lr=0.0025),
)
