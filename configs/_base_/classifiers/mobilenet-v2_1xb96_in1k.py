# The SCSA paper's recipe: ECANet's batch and learning rate, and 400 epochs as
# in its official configuration.
_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'
model = dict(backbone=dict(type='mmattn.MobileNetV2'))
train_dataloader = dict(batch_size=96, persistent_workers=True)
val_dataloader = dict(batch_size=96, persistent_workers=True)
test_dataloader = val_dataloader
optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
train_cfg = dict(max_epochs=400)
default_hooks = dict(
    checkpoint=dict(save_best='accuracy/top1', max_keep_ckpts=2)
)
auto_scale_lr = dict(enable=True, base_batch_size=96)
randomness = dict(seed=0)
papers = dict(SCSA=dict(batch_size=96, lr=0.045))
official_counts = dict(train=dict(images=1281167), val=dict(images=50000))
