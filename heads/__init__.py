"""Arrays in, predictions out: targets, folds, regression heads, ensembles and metrics.

This floor opens no file and knows no encoder. Axes have the same names everywhere:
`video` (a row), `dim` (of one embedding), `modality`, `fold`, `member` (one trained model).
"""
