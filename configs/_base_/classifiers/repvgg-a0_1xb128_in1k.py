# mmpretrain's recipe on one GPU, learning rate 0.05 at this batch size.
_base_ = 'mmpretrain::repvgg/repvgg-A0_8xb32_in1k.py'
model = dict(backbone=dict(type='mmattn.RepVGG'))
train_dataloader = dict(batch_size=128, persistent_workers=True)
val_dataloader = dict(batch_size=128, persistent_workers=True)
test_dataloader = val_dataloader
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1', max_keep_ckpts=2)
)
auto_scale_lr = dict(enable=True)
randomness = dict(seed=0)
papers = dict(SCSA=dict(batch_size=128, lr=0.05))
official_counts = dict(train=dict(images=1281167), val=dict(images=50000))
