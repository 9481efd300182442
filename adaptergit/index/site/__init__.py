"""The pages of an index: static, without requests to anybody else, and readable without JavaScript.

Everything in them comes from strangers' cards: it is text, or Markdown of which only harmless parts are rendered, and
never markup or an address; links lead only to pages that are written here. ``build.py`` decides what there is to say,
``model.py`` what an adapter is on a page, ``boards.py`` draws, ``find.py`` is what the search in the browser reads.
"""

from adaptergit.index.site.build import build_site

__all__ = ["build_site"]
