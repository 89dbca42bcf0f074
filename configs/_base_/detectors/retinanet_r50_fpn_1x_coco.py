_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
model = dict(backbone=dict(type='mmattn.ResNet'))
auto_scale_lr = dict(enable=True)
randomness = dict(seed=0)
