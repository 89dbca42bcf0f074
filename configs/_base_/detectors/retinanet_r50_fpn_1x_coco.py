_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../datasets/coco_detection.py',
    '../schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    'mmdet::retinanet/retinanet_tta.py',
]
model = dict(backbone=dict(type='mmattn.ResNet'))
optim_wrapper = dict(optimizer=dict(lr=0.01))
# The GSCA paper does not say its rate for RetinaNet.
papers = dict(SCSA=dict(batch_size=2, lr=0.00125))
