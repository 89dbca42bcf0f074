# The GSCA paper's recipe of its ablations: learning rate 0.1 at batch 100,
# full precision, no label smoothing; the rest as on ImageNet.
_base_ = [
    'mmpretrain::_base_/models/resnet50.py',
    '../datasets/mini_imagenet.py',
    'mmpretrain::_base_/schedules/imagenet_bs256_coslr.py',
    'mmpretrain::_base_/default_runtime.py',
]
model = dict(backbone=dict(type='mmattn.ResNet'), head=dict(num_classes=100))
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.01, end=5, convert_to_iter_based=True
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=95,
        begin=5,
        end=100,
        convert_to_iter_based=True,
    ),
]
default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1', max_keep_ckpts=2)
)
auto_scale_lr = dict(base_batch_size=100, enable=True)
randomness = dict(seed=0)
papers = dict(GSCA=dict(batch_size=100, lr=0.1))
