"""``spark-ft`` or ``python -m spark_ft``: a shell with ``sc``, and what applications do and did."""

from __future__ import annotations

import atexit
import code
import sys
import types
from typing import Any

import click

import spark_ft
from spark_ft.applications import apps, forget_command
from spark_ft.daemons import keys, manager, pair, worker
from spark_ft.observe import explain, status
from spark_ft.submit import submit

_BANNER = """\
spark_ft {version} on Python {python}
SparkContext available as 'sc' (master = {master}, app id = {app_id})."""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="A program needs no command: `from spark_ft import SparkContext` and run it.",
)
@click.version_option(spark_ft.__version__, "-V", "--version", prog_name="spark_ft")
def main() -> None:
    """PySpark RDD programs without a JVM, that keep going when parts of the machine die."""


main.add_command(status)
main.add_command(explain)
main.add_command(keys)
main.add_command(manager)
main.add_command(worker)
main.add_command(submit)
main.add_command(apps)
main.add_command(forget_command)


@main.command()
def version() -> None:
    """Show the version."""
    click.echo(f"spark_ft {spark_ft.__version__}")


@main.command()
@click.option("--master", default=None, help="local[N], local-cluster[W,C,MB], spark://HOST:PORT; local[*].")
@click.option("--name", default="spark_ft shell", show_default=True, help="Name of the application.")
@click.option("--conf", "settings", multiple=True, metavar="KEY=VALUE", help="A setting; may be repeated.")
def shell(master: str | None, name: str, settings: tuple[str, ...]) -> None:
    """An interactive Python shell with a SparkContext named sc."""
    conf = spark_ft.SparkConf().setAppName(name)
    conf.setAll(pair(item) for item in settings)
    if master is not None:
        conf.setMaster(master)
    with spark_ft.SparkContext(conf=conf) as sc:
        namespace = _namespace(sc)
        _line_editing(namespace)
        banner = _BANNER.format(
            version=spark_ft.__version__,
            python=sys.version.split()[0],
            master=sc.master,
            app_id=sc.applicationId,
        )
        code.interact(banner, local=namespace, exitmsg="")


def _namespace(sc: Any) -> dict[str, Any]:
    """A ``__main__`` of the user's own: what is defined in the shell then travels to tasks by value."""
    main_module = types.ModuleType("__main__")
    sys.modules["__main__"] = main_module
    names = {name: getattr(spark_ft, name) for name in spark_ft.__all__}
    vars(main_module).update(names, sc=sc, spark_ft=spark_ft)
    return vars(main_module)


def _line_editing(namespace: dict[str, Any]) -> None:
    """History and completion where the terminal offers them."""
    try:
        import readline
        import rlcompleter
    except ImportError:
        return
    readline.set_completer(rlcompleter.Completer(namespace).complete)
    readline.parse_and_bind("tab: complete")
    atexit.register(readline.set_completer, None)


if __name__ == "__main__":
    main(prog_name="python -m spark_ft")
