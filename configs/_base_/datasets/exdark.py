# ExDark with its official splits, as tools/dataset_converters/exdark.py writes
# it.
_base_ = './coco_format.py'
data_root = 'data/exdark/'
metainfo = dict(
    classes=(
        'Bicycle',
        'Boat',
        'Bottle',
        'Bus',
        'Car',
        'Cat',
        'Chair',
        'Cup',
        'Dog',
        'Motorbike',
        'People',
        'Table',
    )
)
train_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
test_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo))
val_evaluator = dict(
    type='mmattn.CocoMetric',
    ann_file=data_root + 'annotations/instances_val.json',
    metric='bbox',
    classwise=True,
)
test_evaluator = dict(
    type='mmattn.CocoMetric',
    ann_file=data_root + 'annotations/instances_test.json',
    metric='bbox',
    classwise=True,
)
official_counts = dict(
    train=dict(images=3000, boxes=10381),
    val=dict(images=1800, boxes=6212),
    test=dict(images=2563, boxes=7117),
)
