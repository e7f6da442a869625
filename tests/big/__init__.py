"""More data than memory; the same work small (tests/cluster) and with gigabytes (``make big``)."""
