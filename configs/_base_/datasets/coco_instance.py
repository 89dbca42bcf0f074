_base_ = 'mmdet::_base_/datasets/coco_instance.py'
train_dataloader = dict(dataset=dict(type='mmattn.CocoDataset'))
val_dataloader = dict(dataset=dict(type='mmattn.CocoDataset'))
test_dataloader = dict(dataset=dict(type='mmattn.CocoDataset'))
val_evaluator = dict(type='mmattn.CocoMetric')
test_evaluator = dict(type='mmattn.CocoMetric')
official_counts = dict(
    train=dict(images=118287, annotations=860001),
    val=dict(images=5000, annotations=36781),
)
