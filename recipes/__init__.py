"""Trainings of several stages, each a small file to copy: `toxicity train --recipe best`.

best.toml, quick.toml   what is run, stage by stage
recipe.py               reads such a file
keys.py                 what a stage's result depends on
runner.py               runs the stages that are not done yet, side by side where they can be
display.py              how far all of them are
"""
