"""What we have: packages by manifest digest, each written once and read by any number of processes."""

from adaptergit.store.store import Known, Seen, Store, Stored

__all__ = ["Known", "Seen", "Store", "Stored"]
