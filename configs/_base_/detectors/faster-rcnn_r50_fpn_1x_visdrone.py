# The paper names no detector: its own on COCO is taken, with its schedule.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../datasets/visdrone.py',
    '../schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(
    backbone=dict(type='mmattn.ResNet'),
    roi_head=dict(bbox_head=dict(num_classes=10)),
    # What lies in ignored regions is no background, if the annotations have
    # them as crowds.
    train_cfg=dict(
        rpn=dict(assigner=dict(ignore_iof_thr=0.5)),
        rcnn=dict(assigner=dict(ignore_iof_thr=0.5)),
    ),
    test_cfg=dict(rcnn=dict(score_thr=0.05, max_per_img=500)),
)
papers = dict(SCSA=dict(batch_size=2, lr=0.0025))
