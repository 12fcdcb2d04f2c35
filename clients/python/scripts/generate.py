#!/usr/bin/env python3
"""Generates `stepwell._pb` from `proto/`, or with `--check` says whether it is up to date.

Needs the compiler in exactly this version, so that everybody gets the same bytes:

    pip install grpcio-tools==1.67.1 mypy-protobuf==3.6.0 "setuptools<81" googleapis-common-protos

The compiler is an old one on purpose: what it generates runs with every protobuf since 5.27, so an app may have whichever
release its other libraries want. `google/rpc` is not generated: googleapis-common-protos has it, and a second copy
in one process is an error.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent.parent
REPO = HERE.parents[1]
TARGET = HERE / "src" / "stepwell" / "_pb"
TOOLS = {"grpcio-tools": "1.67.1", "mypy-protobuf": "3.6.0"}

INIT = '''"""Generated from proto/ by scripts/generate.py; nothing in here is written by hand."""
'''


def check_tools() -> None:
    for name, wanted in TOOLS.items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found != wanted:
            sys.exit(f"{name} {wanted} is needed, there is {found}: see the top of {__file__}")


def includes() -> list[str]:
    import google.rpc
    import grpc_tools

    own = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    # The folder above google/ of googleapis-common-protos.
    shared = pathlib.Path(next(iter(google.rpc.__path__))).parents[1]
    return [f"-I{REPO / 'proto'}", f"-I{own}", f"-I{shared}"]


def generate(out: pathlib.Path) -> None:
    """Fills `out` with what `stepwell/_pb` has to be."""
    files = sorted(str(path) for path in (REPO / "proto" / "stepwell" / "v1").glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "grpc_tools.protoc", *includes()]
        command += [f"--python_out={folder}", f"--pyi_out={folder}", f"--grpc_python_out={folder}"]
        plugin = pathlib.Path(sys.executable).parent / "protoc-gen-mypy_grpc"
        command += [f"--plugin=protoc-gen-mypy_grpc={plugin}", f"--mypy_grpc_out=quiet:{folder}"]
        subprocess.run([*command, *files], check=True)
        out.mkdir(parents=True, exist_ok=True)
        (out / "__init__.py").write_text(INIT)
        for path in sorted((pathlib.Path(folder) / "stepwell" / "v1").iterdir()):
            text = path.read_text()
            # The proto package is `stepwell.v1`; in here the modules live in `stepwell._pb`.
            text = re.sub(r"\bfrom stepwell\.v1 import", "from stepwell._pb import", text)
            text = re.sub(r"^import stepwell\.v1\.(\w+)$", r"import stepwell._pb.\1", text, flags=re.MULTILINE)
            text = re.sub(r"\bstepwell\.v1\.(\w+_pb2)\b(?!')", r"stepwell._pb.\1", text)
            if path.suffix == ".pyi":
                text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
            (out / path.name).write_text(text)


def main() -> None:
    check_tools()
    with tempfile.TemporaryDirectory() as folder:
        fresh = pathlib.Path(folder)
        generate(fresh)
        new = {path.name: path.read_bytes() for path in fresh.iterdir()}
        old = {path.name: path.read_bytes() for path in TARGET.iterdir() if path.is_file()} if TARGET.exists() else {}
        if "--check" in sys.argv[1:]:
            stale = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
            if stale:
                sys.exit(f"not what proto/ says: {', '.join(stale)}; run scripts/generate.py")
            print("stepwell._pb is up to date")
            return
        TARGET.mkdir(parents=True, exist_ok=True)
        for name in old.keys() - new.keys():
            (TARGET / name).unlink()
        for name, text in new.items():
            (TARGET / name).write_bytes(text)
        print(f"{len(new)} files in {TARGET.relative_to(REPO)}")


if __name__ == "__main__":
    main()
