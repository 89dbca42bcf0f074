_base_ = [
    '../_base_/classifiers/resnet50_4xb64-coslr-lbs_in1k.py',
    '../_base_/attention/aa.py',
]
model = dict(
    backbone=dict(dcn=_base_.dcn, stage_with_dcn=_base_.stage_with_dcn)
)
