"""Blocks of bytes from one host to another: pieces on credit, in order, slow never taken for lost.

      reducer's thread                              the other host's server thread
      fetch([(host, request), ...])
        | GET    id request credit skip  ------->   open_slice(request) -> chunk, chunk, ...
        |                                           each chunk cut into pieces
        | <-------  PIECE id number bytes           one credit each, one request after the other
        | GRANT  id credit               ------->   when pieces were received
        | <-------  PIECE ... (last of its chunk)
      (index, chunk) to the caller
        | <-------  END id    or    ERROR id evidence text

What holds:

- A chunk that the server's iterator yields arrives as one chunk, whole and in order, or not at all;
  the caller sees the requests in its own order, whatever order they come in.
- Messages may come twice, late or in another order: answers are numbered, credit is told as a sum, an id
  is used for one GET (NET-2, NET-3).  One that stays missing behind later ones is lost (NET-1).
- The server takes a step of an iterator only with credit in hand and sends what it gives at once:
  it never holds more than one chunk a request, whatever the client does (NET-10).
- The client has at most ``window_bytes`` granted or received and not yet taken by the caller (a
  chunk larger than that alone excepted).  The first request not yet finished always has credit, so
  the later ones can never starve it.
- Slow is not lost: time counts only while the caller waits, and only without a single piece from the
  host that it waits for.  As ZeroMQ shows a piece only when it is whole, each retry asks for pieces
  an eighth in size: a line of 1 KB/s passes.  A retry comes by a fresh connection (what an old one
  still holds must not be mistaken for the new) and skips the chunks that the caller already has.
- Evidence: ``refused`` if nobody listens at the address, or none is known; ``timeout`` if somebody
  should have answered; else what the server says: missing, corrupt, incomplete, expired.
- The bytes are verified by the consumer (rows.py), not here.

Data has sockets, threads and contexts of its own: control is never queued behind it.
"""

from spark_ft.transport.blockclient import BlockClient, RemoteFetch
from spark_ft.transport.blockserver import BlockServer
from spark_ft.transport.blockwire import PIECE_BYTES

__all__ = ["PIECE_BYTES", "BlockClient", "BlockServer", "RemoteFetch"]
