"""Reading tar files of others: no member of theirs takes more memory than it may."""

from __future__ import annotations

import tarfile

_MAX_HEADER = 64 * 1024


class OverlongHeaderError(tarfile.ReadError):
    """Made to exhaust whoever reads it."""


class BoundedMember(tarfile.TarInfo):
    """A member whose extended headers, which tarfile reads whole, are small."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        extended = (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if self.type in extended and self.size > _MAX_HEADER:
            raise OverlongHeaderError(f"an extended header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]  # not in typeshed
