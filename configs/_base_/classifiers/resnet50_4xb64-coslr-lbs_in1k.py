# The GSCA paper's recipe: cosine schedule over 100 epochs of which 5 warm up,
# label smoothing, mixed precision, learning rate 0.1 at batch 256.
_base_ = './resnet50_1xb128_in1k.py'
model = dict(
    head=dict(
        loss=dict(
            _delete_=True,
            type='LabelSmoothLoss',
            label_smooth_val=0.1,
            mode='original',
        )
    )
)
train_dataloader = dict(batch_size=64)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.01, end=5, convert_to_iter_based=True
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=95,
        begin=5,
        end=100,
        convert_to_iter_based=True,
    ),
]
papers = dict(_delete_=True, GSCA=dict(batch_size=256, lr=0.1))
