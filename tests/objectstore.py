"""An object store on loopback for tests: moto's S3 server in a process of its own, one for a test run.

``python -m tests.objectstore`` serves until its standard input ends, so it goes with whoever started it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "of-tests",
    "AWS_SECRET_ACCESS_KEY": "of-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def serve() -> Iterator[str]:
    """The endpoint of a fresh store; the processes started from here on find it by themselves."""
    before = dict(os.environ)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.objectstore"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin and server.stdout
        endpoint = server.stdout.readline().strip()
        assert endpoint.startswith("http://127.0.0.1:"), "the object store did not start"
        os.environ.update(ENVIRONMENT, AWS_ENDPOINT_URL=endpoint)
        try:
            yield endpoint
        finally:
            os.environ.clear()
            os.environ.update(before)
            server.stdin.close()
            server.wait(10)


def main() -> None:
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    main()
