# FLIR ADAS v2, thermal images and 14 classes, as
# tools/dataset_converters/flir.py writes it: validated and tested on val. Some
# classes are not in val at all; those are in no mean.
_base_ = './coco_format.py'
data_root = 'data/flir/'
metainfo = dict(
    classes=(
        'person',
        'bike',
        'car',
        'motor',
        'bus',
        'train',
        'truck',
        'light',
        'hydrant',
        'sign',
        'skateboard',
        'stroller',
        'scooter',
        'other vehicle',
    )
)
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
test_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/val/'),
    )
)
val_evaluator = dict(
    type='mmattn.CocoMetric',
    ann_file=data_root + 'annotations/instances_val.json',
    metric='bbox',
    classwise=True,
)
test_evaluator = val_evaluator
official_counts = dict(
    train=dict(images=10742, boxes=175028), val=dict(images=1144, boxes=16696)
)
