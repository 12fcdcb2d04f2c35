"""Searches real run records, imported on both stores, and compares what is found with a look at the files that knows
nothing of terms. States recall and precision; both must be at least 0.9.

The queries are in `../search_queries.json`. $STEPWELL_DATA_SETS is a folder with one folder per set, as in
`test_real_data`.
"""

import json
import pathlib
import tempfile
import time
import unittest

import harness
from test_real_data import SETS, of_kind, plain

QUERIES = json.loads((harness.REPO / "tests" / "search_queries.json").read_text())
# Room for a machine that does much else.
INDEXED_SECONDS = 60


def strings(value):
    """Keys, texts and numbers in a value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, bool):
        yield str(value).lower()
    elif value is not None:
        yield str(value)


def stands(text, needle):
    """Whether it is there with no letter or digit beside it."""
    at = text.find(needle)
    while at >= 0:
        beside = text[at - 1 : at] if at else "", text[at + len(needle) : at + len(needle) + 1]
        if not any(character.isalnum() for character in beside):
            return True
        at = text.find(needle, at + 1)
    return False


class Quality:
    def __init__(self):
        self.expected = self.found = self.right = 0

    def add(self, expected, found):
        self.expected += len(expected)
        self.found += len(found)
        self.right += len(expected & found)


class Cases:
    @classmethod
    def setUpClass(cls):
        cls.pb = harness.stubs()

    def search(self, server, query):
        """All places where it is found: kind, execution, step."""
        stub = self.pb.search_grpc.SearchServiceStub(server.channel)
        request = self.pb.search.SearchRequest(query=query, page_size=1000)
        until, found = time.monotonic() + INDEXED_SECONDS, []
        while True:
            page = stub.Search(request)
            if not page.up_to_date and not request.page_token:
                self.assertLess(time.monotonic(), until, "the index does not catch up")
                continue
            for hit in page.hits:
                step = hit.step_id if hit.HasField("step_id") else None
                found.append((self.pb.search.SearchKind.Name(hit.kind), hit.execution_id, step))
            if not page.next_page_token:
                self.assertEqual(len(set(found)), len(found), "a text is found once")
                return set(found)
            request.page_token = page.next_page_token

    def check(self, server, what, quality):
        self.assertTrue(quality.found, f"{what}: nothing is found")
        recall = quality.right / quality.expected
        precision = quality.right / quality.found
        print(
            f"{server.store}: {what}: recall {recall:.3f}, precision {precision:.3f}, {quality.expected} expected",
            flush=True,
        )
        self.assertGreaterEqual(recall, 0.9)
        self.assertGreaterEqual(precision, 0.9)

    def put(self, server, folder):
        harness.stepwell("import", str(folder), "--assume-status", "completed", "--server", server.address)

    def numbers_of_steps(self, server, execution_id):
        """Steps that have a key in the file have a number of the server's."""
        stub = self.pb.step_grpc.StepServiceStub(server.channel)
        request, numbers = self.pb.step.ListStepsRequest(execution_id=execution_id, page_size=500), {}
        while True:
            page = stub.ListSteps(request)
            numbers.update({step.step_key: step.step_id for step in page.steps if step.step_key})
            if not page.next_page_token:
                return numbers
            request.page_token = page.next_page_token

    def texts_of(self, server, folder):
        for execution in of_kind(folder, "executions"):
            yield ("SEARCH_KIND_EXECUTION_ERROR", execution["execution_id"], None), execution.get("error")
        keyed = {}
        for step in of_kind(folder, "execution_steps"):
            id, number = step["execution_id"], plain(step["step_id"])
            if isinstance(number, str):
                if id not in keyed:
                    keyed[id] = self.numbers_of_steps(server, id)
                number = keyed[id][number]
            yield ("SEARCH_KIND_STEP_ERROR", id, number), step.get("error")
            yield ("SEARCH_KIND_STEP_OUTPUT", id, number), plain(step.get("output"))

    @unittest.skipUnless(SETS, "no real data: set STEPWELL_DATA_SETS")
    def test_real_runs(self):
        with self.server() as server:
            texts = {}
            for folder in sorted(path.parent for path in pathlib.Path(SETS).glob("*/executions.jsonl*")):
                self.put(server, folder)
                for place, value in self.texts_of(server, folder):
                    if value is not None:
                        texts[place] = "\n".join(strings(value)).lower()
            quality, asked = Quality(), 0
            for one in QUERIES["real_runs"]:
                needles = [[needle.lower() for needle in ways] for ways in one["stands"]]
                expected = {
                    place
                    for place, text in texts.items()
                    if all(any(stands(text, needle) for needle in ways) for ways in needles)
                }
                found = self.search(server, one["query"])
                asked += bool(expected)
                if found != expected:
                    print(f"{one['query']}: {len(expected - found)} missing, {len(found - expected)} too many")
                quality.add(expected, found)
            self.assertTrue(quality.expected, "the queries are about other data")
            self.check(server, f"{asked} queries over {len(texts)} real texts", quality)

    def test_other_languages(self):
        with self.server() as server, tempfile.TemporaryDirectory() as folder:
            moment = {"$date": "2026-01-01T00:00:00Z"}
            execution = {
                "execution_id": "e", "app_id": 1, "app_name": "a", "status": "completed", "started_at": moment,
                "completed_at": moment,
            }
            steps = [
                {
                    "execution_id": "e", "step_id": number, "step_name": "s", "status": "completed", "started_at": moment,
                    "completed_at": moment, "output": {"text": text},
                }
                for number, text in enumerate(QUERIES["texts"])
            ]
            for name, documents in (("executions", [execution]), ("execution_steps", steps)):
                lines = "".join(json.dumps(document) + "\n" for document in documents)
                (pathlib.Path(folder) / f"{name}.jsonl").write_text(lines)
            self.put(server, folder)
            quality = Quality()
            for one in QUERIES["other_languages"]:
                expected = {("SEARCH_KIND_STEP_OUTPUT", "e", number) for number in one["texts"]}
                found = self.search(server, one["query"])
                if found != expected:
                    print(f"{one['query']}: {found} instead of {expected}")
                quality.add(expected, found)
            self.check(server, f"{len(QUERIES['other_languages'])} queries in other languages", quality)


class OnSqlite(Cases, unittest.TestCase):
    def server(self):
        server = harness.Server()
        server.store = "sqlite"
        return server


class OnMongoDB(Cases, unittest.TestCase):
    def server(self):
        server = harness.Server(harness.shared_mongodb().uri, database=f"search_{time.time_ns()}")
        server.store = "mongodb"
        return server


if __name__ == "__main__":
    unittest.main(verbosity=2)
