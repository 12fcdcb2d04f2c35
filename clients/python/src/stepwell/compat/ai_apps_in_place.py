"""A program of `jkilelo/ai_apps` as it is, with its imports: one line more, and none changed.

    import stepwell.compat.ai_apps_in_place      # before it imports its tracker

Or no line at all: `python -m stepwell.compat.ai_apps_in_place program.py` runs it so.

In this process `apps.common.services.execution_tracker` and `apps.common.database` then are `stepwell.compat.ai_apps`,
whether or not the project is there; its other modules are its own. What that one does not have cannot be imported.
"""

from __future__ import annotations

import pathlib
import runpy
import sys

from . import ai_apps

#: Of that project: its tracker, and what the tracker stores with.
MODULES = ("apps.common.services.execution_tracker", "apps.common.database")

for _name in MODULES:
    if sys.modules.get(_name, ai_apps) is not ai_apps:
        raise ImportError(f"{_name} has been imported already: import stepwell.compat.ai_apps_in_place before it")
sys.modules.update(dict.fromkeys(MODULES, ai_apps))


def main() -> None:
    """Runs a program."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m stepwell.compat.ai_apps_in_place PROGRAM [ARGUMENT...]")
    del sys.argv[0]
    # As when Python runs it.
    sys.path[0] = str(pathlib.Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
