_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../datasets/digits_detection.py',
    '../schedules/adamw_15e.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        type='mmattn.ResNet',
        depth=18,
        base_channels=24,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[24, 48, 96, 192], out_channels=64, num_outs=3),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        stacked_convs=2,
        feat_channels=64,
        anchor_generator=dict(strides=[8, 16, 32]),
    ),
)
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(interval=5))
randomness = dict(seed=0)
