"""``python -m spark_ft.cluster.main worker|manager``: a process of the cluster, configured by one line
of JSON on stdin.  The end of stdin, or of the process that it names as its parent, ends it."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> None:
    """Become what ``arguments[0]`` says.  Each role imports only what it needs: a manager starts in a
    third of a worker's time."""
    role = arguments[0] if arguments else ""
    if role == "worker" or role.startswith("warm:"):
        from spark_ft.cluster import worker_main

        if role == "worker":
            worker_main.run()
        worker_main.resume_warm(role)
    if role == "manager":
        from spark_ft.cluster import manager_main

        manager_main.run()
    sys.exit("usage: python -m spark_ft.cluster.main worker|manager   (configuration on stdin)")


if __name__ == "__main__":
    main(sys.argv[1:])
