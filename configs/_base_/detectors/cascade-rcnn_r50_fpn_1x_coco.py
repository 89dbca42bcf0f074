_base_ = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'
model = dict(backbone=dict(type='mmattn.ResNet'))
auto_scale_lr = dict(enable=True)
randomness = dict(seed=0)
papers = dict(SCSA=dict(batch_size=2, lr=0.0025))
