# VisDrone2019-DET as tools/dataset_converters/visdrone.py writes it: validated
# on val, tested on test-dev.
_base_ = './coco_format.py'
data_root = 'data/visdrone/'
metainfo = dict(
    classes=(
        'pedestrian',
        'people',
        'bicycle',
        'car',
        'van',
        'truck',
        'tricycle',
        'awning-tricycle',
        'bus',
        'motor',
    )
)
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
test_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
# COCO's AP is of 100 detections an image, its AP50 and AP75 of all, as in
# other tables made with mmdet; VisDrone's own metric is of 500.
val_evaluator = [
    dict(
        type='mmattn.CocoMetric',
        ann_file=data_root + 'annotations/instances_val.json',
        metric='bbox',
        classwise=True,
    ),
    dict(
        type='mmattn.VisDroneMetric',
        ann_file=data_root + 'annotations/instances_val.json',
    ),
]
test_evaluator = [
    dict(
        type='mmattn.CocoMetric',
        ann_file=data_root + 'annotations/instances_test.json',
        metric='bbox',
        classwise=True,
    ),
    dict(
        type='mmattn.VisDroneMetric',
        ann_file=data_root + 'annotations/instances_test.json',
    ),
]
official_counts = dict(
    train=dict(images=6471, boxes=343204),
    val=dict(images=548, boxes=38759),
    test=dict(images=1610, boxes=75102),
)
