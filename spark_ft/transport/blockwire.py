"""What block servers and clients say to each other: the words of the drawing in ``blocks.py``.

A client's message is one part: an ASK, and behind a GET the request itself, opaque here.  A server's is
two: an ANSWER and the payload (the bytes of a PIECE or LAST, the evidence and text of an ERROR).
"""

from struct import Struct

from spark_ft.errors import BlockCorrupt, BlockExpired, BlockIncomplete, BlockMissing

PIECE_BYTES = 1 << 20  # at most
PIECE_BYTES_MIN = 2048
REQUEST_BYTES_MAX = 1 << 20

GET, GRANT, CANCEL = 1, 2, 3
PIECE, LAST, END, ERROR, UNKNOWN = 1, 2, 3, 4, 5  # LAST: the last piece of a chunk

MAGIC = b"SpFd"
# magic, kind, token, request id; then credit (pieces since the GET, in all), size of a piece, chunks to skip
ASK = Struct("<4sB16sQIII")
# magic, kind, token, request id; then the number of the message in its request
ANSWER = Struct("<4sB16sQQ")

EVIDENCE = {
    BlockMissing: "missing",
    BlockCorrupt: "corrupt",
    BlockIncomplete: "incomplete",
    BlockExpired: "expired",
}
