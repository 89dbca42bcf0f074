_base_ = 'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'
# The paper's 64.10M parameters fit the plain stem, not mmseg's ResNetV1c.
model = dict(
    pretrained=None,
    backbone=dict(
        type='mmattn.ResNet',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
)
auto_scale_lr = dict(enable=True, base_batch_size=16)
randomness = dict(seed=0)
papers = dict(SCSA=dict(batch_size=16, lr=0.01))
official_counts = dict(train=dict(images=20210), val=dict(images=2000))
