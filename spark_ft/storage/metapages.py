"""What an LMDB file says of itself, read without LMDB, which one that is too short would kill (ST-9)."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from spark_ft.errors import BlockCorrupt

_META_MAGIC = 0xBEEFC0DE
_MAP_BYTES_MAX = 1 << 46


def checked_map_bytes(path: Path) -> int:
    """The map size that the newer meta page names.  Raises BlockCorrupt when the file is too short for it;
    OSError.

    LMDB keeps two meta pages, at pages 0 and 1: after a page header of 16 bytes come magic and version
    (4 bytes each), an address and the map size (8 each), two database records (48 each; the first one
    begins with the page size), the last page in use and the transaction's number (8 each).
    """
    with open(path, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        head = file.read(152)
        if len(head) < 152:
            raise BlockCorrupt(f"{path}: a file of {size_bytes} bytes is no environment")
        (page_bytes,) = struct.unpack_from("<I", head, 40)
        file.seek(page_bytes)
        metas = [head, file.read(152)]
    found: list[tuple[int, int, int]] = []
    for meta in metas:
        if len(meta) == 152 and struct.unpack_from("<I", meta, 16)[0] == _META_MAGIC:
            (map_bytes,) = struct.unpack_from("<Q", meta, 32)
            last_page, transaction = struct.unpack_from("<QQ", meta, 136)
            found.append((transaction, last_page, map_bytes))
    if len(found) < 2:
        raise BlockCorrupt(f"{path}: a meta page is damaged")
    _, last_page, map_bytes = max(found)
    if size_bytes < (last_page + 1) * page_bytes or not page_bytes <= map_bytes <= _MAP_BYTES_MAX:
        raise BlockCorrupt(f"{path}: {size_bytes} bytes, but its meta page speaks of page {last_page}")
    return int(map_bytes)
