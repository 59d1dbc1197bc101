"""The model card of a published version: what it is, what it was measured to do, where it fails.

    toxicity card --evaluation runs/eval/evaluation.json --repository model_repository

`card.md.jinja` is its text; every figure comes from the version's manifest and from an evaluation
of that very version. The fields are those of Mitchell et al., "Model Cards for Model Reporting"
(2019), as Hugging Face's template has them.
"""
