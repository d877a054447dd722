"""Published results held against what the model says of them: cases as data, predictions, errors and intervals.

``cases.toml`` has the cases, one module each group of predictions, ``verdicts`` what comes of it.
"""
