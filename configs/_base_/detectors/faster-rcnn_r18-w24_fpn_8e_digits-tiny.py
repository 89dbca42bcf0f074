# Digits of 8 to 20 pixels: anchors half as large, from 8 pixels on.
_base_ = './faster-rcnn_r18-w24_fpn_8e_digits.py'
data_root = 'data/digits-tiny/'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator
model = dict(rpn_head=dict(anchor_generator=dict(scales=[2])))
