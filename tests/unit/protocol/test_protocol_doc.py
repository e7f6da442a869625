"""docs/protocol.md has one row for every message, and says of each who sends it to whom."""

import re
import typing
from pathlib import Path

from spark_ft.protocol import messages
from spark_ft.protocol.messages import Message

ROOT = Path(__file__).resolve().parents[3]

# The section comments of messages.py, as senders and receivers.  A message listed in EXCEPTIONS
# stands in a section because it answers what stands beside it, or goes to more than one.
SECTIONS = {
    "Executor to driver": ("executor", "driver"),
    "Driver to executor": ("driver", "executor"),
    "Driver to worker or executor": ("driver", "worker, executor"),
    "Worker or executor to driver": ("worker, executor", "driver"),
    "Worker to driver": ("worker", "driver"),
    "Driver to worker": ("driver", "worker"),
    "To a worker from whoever grants resources (manager, or the driver in local[n])": ("granter", "worker"),
    "Worker to whoever grants resources": ("worker", "granter"),
    "Whoever submits, manager, worker: drivers that run within the cluster": None,
    "Driver to manager and back": None,
    "Anyone to anyone": ("anyone", "anyone"),
}
EXCEPTIONS = {
    "SubmitDriver": ("who submits, then manager", "manager, then worker"),
    "DriverChanged": ("worker, then manager", "manager, then who submitted"),
    "Fenced": ("anyone", "anyone"),
    "DropBlocks": ("driver", "executor, worker"),
    "MakeCopies": ("driver", "worker, executor"),
    "WorkerRegistered": ("granter", "worker"),
    "WorkerBeat": ("worker", "driver, granter"),
    "RegisterApp": ("driver", "manager"),
    "UnregisterApp": ("driver", "manager"),
    "AppRegistered": ("manager", "driver"),
    "WorkerLost": ("manager", "driver"),
    "AppUnregistered": ("manager", "driver"),
}


def documented() -> dict[str, list[str]]:
    """Name -> the other cells of its row."""
    text = (ROOT / "docs" / "protocol.md").read_text().partition("\n## Messages\n")[2]
    lines = [line.strip("|") for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    assert rows[0][:3] == ["name", "sender", "receiver"]
    names = [row[0] for row in rows[2:]]
    assert len(names) == len(set(names))
    return {row[0]: row[1:] for row in rows[2:]}


def in_sections() -> dict[str, str]:
    """Name of each class in messages.py -> its section's comment."""
    section, found = "", {}
    for line in Path(messages.__file__).read_text().splitlines():
        if comment := re.fullmatch(r"# --- (.*?) -*", line):
            section = comment[1]
        elif definition := re.match(r"class (\w+)", line):
            found[definition[1]] = section
    return found


def test_every_message_has_a_row_and_every_row_a_message() -> None:
    assert set(documented()) == {cls.__name__ for cls in typing.get_args(Message)}


def test_a_row_names_sender_and_receiver_as_the_section_of_its_message_does() -> None:
    sections = in_sections()
    for name, cells in documented().items():
        wanted = EXCEPTIONS.get(name) or SECTIONS[sections[name]]
        assert (cells[0], cells[1]) == wanted, name


def test_every_row_says_when_and_what_happens_in_bad_weather() -> None:
    for name, cells in documented().items():
        assert len(cells) == 5 and cells[2] and cells[3], name


def test_every_message_of_the_union_says_in_its_docstring_what_it_is() -> None:
    for cls in typing.get_args(Message):
        assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), cls
