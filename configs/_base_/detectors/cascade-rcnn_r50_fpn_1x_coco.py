_base_ = [
    'mmdet::_base_/models/cascade-rcnn_r50_fpn.py',
    '../datasets/coco_detection.py',
    '../schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(backbone=dict(type='mmattn.ResNet'))
papers = dict(SCSA=dict(batch_size=2, lr=0.0025))
