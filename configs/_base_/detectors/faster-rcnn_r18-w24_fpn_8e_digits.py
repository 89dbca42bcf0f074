# The study's: short, for many runs. The window is the logger's interval, so
# that the logged times are means over all iterations.
_base_ = './faster-rcnn_r18-w24_fpn_15e_digits.py'
train_cfg = dict(max_epochs=8, val_interval=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', T_max=8, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2))
log_processor = dict(window_size=25)
