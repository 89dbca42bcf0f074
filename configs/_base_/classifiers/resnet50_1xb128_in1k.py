# The SCSA paper's recipe: mmpretrain's, on one GPU. 100 epochs, learning rate
# 0.05 at this batch size, divided by 10 after 30, 60 and 90 epochs, mixed
# precision.
_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
model = dict(backbone=dict(type='mmattn.ResNet'))
train_dataloader = dict(
    batch_size=128,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
)
val_dataloader = dict(
    batch_size=128,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
)
test_dataloader = val_dataloader
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1', max_keep_ckpts=2)
)
auto_scale_lr = dict(enable=True)
randomness = dict(seed=0)
papers = dict(SCSA=dict(batch_size=128, lr=0.05))
official_counts = dict(train=dict(images=1281167), val=dict(images=50000))
