# The paper does not say where; in the attention's branch, before its shortcut
# is added, as the gates would damp the trunk once a block.
plugins = [dict(cfg=dict(type='mmattn.SCSA'), position='after_attn')]
