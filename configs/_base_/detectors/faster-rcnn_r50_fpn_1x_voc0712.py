# The paper names no detector: its own on COCO is taken, with its schedule.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../datasets/voc0712.py',
    '../schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(
    backbone=dict(type='mmattn.ResNet'),
    roi_head=dict(bbox_head=dict(num_classes=20)),
    test_cfg=dict(rcnn=dict(score_thr=0.05, max_per_img=100)),
)
papers = dict(SCSA=dict(batch_size=2, lr=0.0025))
