"""One workload on one engine in this fresh process; its figures go to a file as JSON."""

import argparse
import json
from pathlib import Path

import workloads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--workload", required=True, choices=workloads.names())
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--conf", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    conf = dict(setting.split("=", 1) for setting in args.conf)
    figures = workloads.run_one(args.engine, args.workload, args.cores, args.scale, conf)
    args.out.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
