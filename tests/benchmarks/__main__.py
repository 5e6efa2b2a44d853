"""Measure avlens beside its peers, and write docs/benchmarks.md.

    python -m tests.benchmarks                         # what is not measured yet, then the page; about forty minutes
    python -m tests.benchmarks 1024 "length 8192"      # these parts only
    python -m tests.benchmarks --fresh                 # all of it again
    python -m tests.benchmarks 1024 --device cuda      # on a GPU: tables are printed, the page is left as it is

Peers are installed with `pip install -c constraints.txt ".[bench]"`.
"""

import argparse
from pathlib import Path

from tests.benchmarks import page
from tests.benchmarks.compare import PARTS, RECORDS, Script, forget, measure, read
from tests.benchmarks.found import Found
from tests.benchmarks.peers import PEERS


def main() -> None:
    """Measure, then write."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    asked.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS, metavar="PEER", help=", ".join(PEERS))
    asked.add_argument("--device", default="cpu")
    asked.add_argument("--records", type=Path, help="where lines are kept")
    asked.add_argument("--fresh", action="store_true", help="measure the parts again")
    told = asked.parse_args()
    scripts = [part for part, given in PARTS.items() if isinstance(given, Script)]
    parts = told.parts or [
        part for part in PARTS if "smoke" not in part and (told.device == "cpu" or part not in scripts)
    ]
    if told.device != "cpu" and set(parts) & set(scripts):
        asked.error(f"{', '.join(scripts)} are measured on a CPU only.")
    if unknown := set(parts) - set(PARTS):
        asked.error(f"there is no part {', '.join(sorted(unknown))}. Parts are {', '.join(PARTS)}.")
    records = told.records or (RECORDS if told.device == "cpu" else RECORDS.with_stem(f"measured_{told.device}"))
    if told.fresh:
        forget(parts, records)
    measure(parts, records, peers=told.peers, device=told.device)
    found = Found(read(records))
    if records == RECORDS:
        page.write(found)
    else:
        print(*(f"\n{name}\n{table}" for name, table in page.tables(found).items()), sep="\n")


if __name__ == "__main__":
    main()
