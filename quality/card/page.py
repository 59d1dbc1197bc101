"""A card's Markdown as one HTML page that needs no other."""

from __future__ import annotations

import html

import markdown

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }
table { border-collapse: collapse; font-size: 14px; display: block; overflow-x: auto }
th, td { padding: .25em .8em; text-align: left; vertical-align: top }
th, td { border-bottom: 1px solid #8884 }
code { overflow-wrap: anywhere } thead tr:has(th:empty) { display: none }
"""


def page(text: str, title: str) -> str:
    """The page; what stands between < and > in the Markdown is shown, not obeyed."""
    body = markdown.markdown(html.escape(text, quote=False), extensions=["tables"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style>\n{body}\n</html>\n"
    )
