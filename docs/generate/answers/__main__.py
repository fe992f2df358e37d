"""Write the answers, take over the records of a study, or do the run of a record again."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from . import condensed
from .records import differences, keep, key, records, study, train_again
from .site import missing, shown, write


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate.answers", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("write", help="write the pages from the committed records (the default)")
    kept = commands.add_parser("keep", help="take over the records of a study")
    kept.add_argument("name", help="the study's name")
    kept.add_argument("folder", type=Path, help="the folder with its records")
    again = commands.add_parser("rerun", help="do the run of a committed record again")
    again.add_argument("name", help="the study's name")
    again.add_argument(
        "key", nargs="?", default="", help="the first digits of the record's key; one is drawn without it"
    )
    asked = parser.parse_args()
    if asked.command == "keep":
        (condensed.keep if asked.name == "map" else keep)(asked.name, asked.folder)
    elif asked.command == "rerun":
        (remeasure if asked.name == "map" else rerun)(asked.name, asked.key)
    else:
        write()
        for name, lacking in missing().items():
            print(f"{name}: {'' if name in shown() else 'no page, '}no records of {', '.join(lacking)}")


def rerun(name: str, start: str) -> None:
    """Do the run of one record again, and say what differs.

    Raises:
        SystemExit: No record has such a key, or something differs.
    """
    fitting = [record for record in records(name) if key(record).startswith(start)]
    if not fitting:
        raise SystemExit(f"{name}: no record has a key that begins with {start}")
    record = random.choice(fitting)
    spec = record.spec
    print(f"{record.title}: {spec.method}, {dict(spec.method_settings)}, seed {spec.seed}, {spec.steps} steps")
    print(f"python -m docs.generate.answers rerun {name} {key(record)}", flush=True)
    again = train_again(record, name)
    if found := differences(record, again):
        then, now = (f"{each.environment['processor']}, torch {each.environment['torch']}" for each in (record, again))
        raise SystemExit("\n".join([*found, f"Made on {then}, again on {now}: another processor rounds differently."]))
    print("The test losses and metrics are the same to the last digit.")


def remeasure(name: str, number: str) -> None:
    """Do all runs of one problem of a condensed study again, drawn at random or given by its number, and say what differs.

    Raises:
        SystemExit: Something differs.
    """
    cells = condensed.table()["cells"]
    place = int(number) if number else random.randrange(len(cells))
    print(f"{cells[place]['settings']}\npython -m docs.generate.answers rerun {name} {place}", flush=True)
    again = condensed.measure_again(study(name), place)
    if found := [each for i in again for each in condensed.differences(cells[i], again[i], f"problem {i}")]:
        raise SystemExit("\n".join(found))
    print(f"All losses of the problems {', '.join(map(str, again))}, trained together, are the same to the last digit.")


if __name__ == "__main__":
    main()
