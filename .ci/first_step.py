#!/usr/bin/env python3
"""Goes from a clone to the first step that is stored, in each language, by the commands of docs/clients.md word for word.

    python3 .ci/first_step.py            with what the package managers of this machine have already
    python3 .ci/first_step.py --cold     with empty caches, as who has never used any of it; what docs/clients.md says
    python3 .ci/first_step.py go java    only these

A block of commands is a fenced block under the comment `<!-- first step: LANGUAGE -->`. Each runs in a copy of the tracked
files of its own, against one server, and ends with the line that says that the step is COMPLETED. What it took is printed.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from tour import REPO, Tour, fail

MARK = re.compile(r"^<!-- first step: (\w+) -->\n+```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LAST_LINE = re.compile(r"step 1 fetch: (STEP_STATUS_)?COMPLETED")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
BLOCK_SECONDS = 900
LANGUAGES = {"python", "typescript", "go", "java"}


def binary():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target"))
    return os.environ.get("STEPWELL_BIN") or str(target / "release/stepwell")


def caches(folder, cold):
    """Where package managers keep what they have fetched."""
    # Ours goes where nobody else's is, in any case.
    kept = folder if cold else pathlib.Path(os.environ.get("STEPWELL_CI_CACHE", pathlib.Path.home() / ".cache/stepwell-ci"))
    found = {"MAVEN_OPTS": f"-Dmaven.repo.local={kept / 'm2'}"}
    if cold:
        found |= {
            "PIP_CACHE_DIR": str(folder / "pip"),
            "npm_config_cache": str(folder / "npm"),
            "GOMODCACHE": str(folder / "go"),
            "GOCACHE": str(folder / "go-build"),
            "GOFLAGS": "-modcacherw",
        }
    return found


def main():
    cold, wanted = "--cold" in sys.argv, [one for one in sys.argv[1:] if one != "--cold"]
    if not {*wanted} <= LANGUAGES:
        sys.exit(__doc__)
    text = (REPO / "docs/clients.md").read_text()
    blocks = MARK.findall(text)
    if len(blocks) != text.count("<!-- first step: "):
        fail("a mark in docs/clients.md has no fenced block under it")
    if {language for language, _ in blocks} != LANGUAGES:
        fail(f"docs/clients.md has the commands of {[language for language, _ in blocks]}")
    blocks = [one for one in blocks if not wanted or one[0] in wanted]
    with tempfile.TemporaryDirectory(prefix="stepwell-first-step-") as name:
        folder = pathlib.Path(name)
        server = Tour(folder)
        try:
            server.server(f"exec {binary()} serve")
            for language, block in blocks:
                there = Tour(folder / language)
                began = time.monotonic()
                there.prepare()
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", block],
                    cwd=there.copy, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True, timeout=BLOCK_SECONDS,
                    env={**os.environ, "STEPWELL_SERVER": f"127.0.0.1:{server.port}", **caches(folder / "caches", cold)},
                )
                seconds = time.monotonic() - began
                if done.returncode != 0:
                    fail(f"{language}: exit {done.returncode}\n{block}\n{done.stdout}")
                if not LAST_LINE.fullmatch(COLOUR.sub("", done.stdout).strip().splitlines()[-1]):
                    fail(f"{language}: no step was stored:\n{done.stdout}")
                # The clone is one too.
                commands = 1 + len(block.replace("\\\n", " ").strip().splitlines())
                print(f"{language}: {commands} commands, {seconds:.0f} s", flush=True)
        finally:
            server.stop()
        print(f"tour: the first step in {len(blocks)} languages")


main()
