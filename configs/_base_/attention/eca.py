# Before the shortcut addition, with its paper's kernels.
plugins = [dict(cfg=dict(type='mmattn.ECA'), position='after_conv3')]
