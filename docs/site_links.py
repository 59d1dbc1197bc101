"""Let the site follow links out of docs/: each linked file of the repository becomes part of it.

A hook of mkdocs.yml. On a forge `../core/src/tokenizer.h` leads to the file itself; here it leads
to a copy under files/, with .txt behind what a browser would offer to save.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

_LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)")
_SHOWN = {".png", ".json"}


def _name(target: str) -> str:
    """Path in the site of a link as a page of docs/ spells it."""
    path = posixpath.normpath(target.removeprefix("../"))
    return f"files/{path}" + ("" if Path(path).suffix in _SHOWN else ".txt")


def on_files(files, config):
    docs = Path(config.docs_dir)
    for page in files.documentation_pages():
        for _, target in _LINK.findall(page.content_string):
            path = (docs / target).resolve()
            if path.is_file() and files.get_file_from_path(_name(target)) is None:
                files.append(File.generated(config, _name(target), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, **_):
    return _LINK.sub(lambda found: found[1] + _name(found[2]), markdown)
