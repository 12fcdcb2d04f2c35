"""Runs the tests in `tests/node` against a server. $NODE_PATH has to reach @grpc/grpc-js and proto-loader."""

import os
import shutil
import subprocess
import unittest

import harness


@unittest.skipUnless(shutil.which("node"), "no node on PATH")
class Node(unittest.TestCase):
    def test_client_that_reads_the_protos(self):
        with harness.Server() as server:
            done = subprocess.run(
                ["node", "--test", str(harness.REPO / "tests/node")],
                env={**os.environ, "STEPWELL_ADDRESS": server.address},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=120,
            )
            print(done.stdout)
            self.assertEqual(done.returncode, 0)
            self.assertNotIn("# tests 0", done.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
