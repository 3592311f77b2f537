"""The site, built by `make docs`: these pages, the references of the kernels, and what the docstrings say."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
# Pages that run code start Python anew; it has to find this checkout too, one thread serves it best.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"

import sdsd  # noqa: E402
from docs import site_pages  # noqa: E402

project, author, copyright = "SDSD", "The SDSD authors", "the SDSD authors, MIT licence"
version = release = sdsd.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docs.api_directive"]
exclude_patterns = ["_static"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 240
nb_execution_in_temp = True
nb_merge_streams = True
nb_ipywidgets_js: dict[str, Any] = {}

# `gamma_stats` in a docstring is a link where it names something public, and code everywhere.
default_role = "py:obj"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]

html_theme = "furo"
html_title = f"SDSD {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["access.js"]
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # it fetches pages, which a browser does not do for files
html_theme_options = {"navigation_with_keys": False}


def setup(app: Any) -> None:
    site_pages.write(HERE)
    app.connect("source-read", _point_into_the_site)


def _point_into_the_site(app: Any, name: str, source: list[str]) -> None:
    """Links to files beside docs/ lead to the pages that hold them; to code that has none, they are its path."""
    source[0] = re.sub(r"\.\./sdsd_kernels/(\w+)/README\.md", r"made/kernels/\1.md", source[0])
