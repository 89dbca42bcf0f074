# "+1NL": one block at the end of the last stage, the width that the count of
# the GSCA paper fits (+8.40M).
plugins = [
    dict(
        cfg=dict(type='mmattn.NonLocal'),
        position='after_block',
        stages=(False, False, False, True),
        blocks=(-1,),
    )
]
