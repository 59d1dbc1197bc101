"""Where to decide: the operating curve of labelled scores, and the thresholds that follow from it.

A training and an export write it of the validation split as `thresholds.json`; `toxicity
thresholds` shows it, and makes one of a site's own labels. `curve` has the counts, `choice` chooses
and judges, `document` is the file, `intervals` says how far chance moves all of it.
"""
