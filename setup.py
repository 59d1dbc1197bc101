"""The compiled part of the tokenizer; the rest stands in pyproject.toml.

Optional: without a C compiler the tokenizer takes its slower way to the same ids.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "train._chunks",
            ["train/chunks.c"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            optional=True,
        )
    ]
)
