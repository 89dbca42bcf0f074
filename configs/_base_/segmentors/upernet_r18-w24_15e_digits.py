_base_ = [
    'mmseg::_base_/models/upernet_r50.py',
    '../datasets/digits_segmentation.py',
    '../schedules/adamw_15e.py',
    'mmseg::_base_/default_runtime.py',
]
norm_cfg = dict(type='BN')
# init_cfg: mmseg starts the classifiers so near zero that from scratch, with
# 89 % background, they learn nothing else in this time.
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    pretrained=None,
    backbone=dict(
        type='mmattn.ResNet', depth=18, base_channels=24, norm_cfg=norm_cfg
    ),
    decode_head=dict(
        in_channels=[24, 48, 96, 192],
        channels=64,
        num_classes=11,
        norm_cfg=norm_cfg,
        init_cfg=None,
    ),
    auxiliary_head=dict(
        in_channels=96,
        channels=32,
        num_classes=11,
        norm_cfg=norm_cfg,
        init_cfg=None,
    ),
)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=25),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=5),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
log_processor = dict(by_epoch=True)
randomness = dict(seed=0)
