"""One page to look at a run: numbers, curves, and every response beside its verdicts.

write("runs/a")    runs/a/report.html, which opens anywhere and needs nothing else
"""

from __future__ import annotations

import os
import pathlib

from rubric_jax.report import browse, collect, page


def write(workdir, out=None, *, instances: int = 200, lookup: browse.Lookup | None = None):
    """Writes the page of a run, from whatever parts of it are there.

    Args:
      workdir: the run directory.
      out: the file; None = WORKDIR/report.html.
      instances: how many of the last round's instances the page holds at most, evenly spread.
      lookup: gives instruction and pictures by id; None = from the run's config.

    Returns:
      The path of the page. Equal input gives equal bytes.

    Raises:
      ValueError: no such directory, a broken file ('file:line: what is wrong'), a full disk.
    """
    run = collect.collect(workdir, instances=instances, lookup=lookup)
    path = pathlib.Path(out) if out is not None else pathlib.Path(workdir) / "report.html"
    # "replace": half a surrogate pair, as a tokenizer may give, has no UTF-8.
    data = page.render(run).encode("utf-8", "replace")
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(
            f"Cannot write the report {str(path)!r}: {error.strerror}. Free space there, or give "
            "another file."
        ) from error
    return path
