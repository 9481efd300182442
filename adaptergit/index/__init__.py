"""Who has what: entries of published releases, and searching them locally."""

from adaptergit.index.local import Entry, add_entry, entry_of, find_release, read_index, search_index

__all__ = ["Entry", "add_entry", "entry_of", "find_release", "read_index", "search_index"]
