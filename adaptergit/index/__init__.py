"""Who has what: entries of published releases, and searching them locally."""

from adaptergit.index.entry import Entry, entry_of
from adaptergit.index.local import add_entry, find_release, read_index

__all__ = ["Entry", "add_entry", "entry_of", "find_release", "read_index"]
