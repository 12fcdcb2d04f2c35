"""The questions that dashboards ask the database straight: the same with pymongo and through the server, on the same
documents, in the same order. The documents are made up, with times that tie and times that are missing;
`test_real_data` asks for real ones.
"""

import datetime
import random
import time
import unittest

from bson.codec_options import CodecOptions
from google.protobuf.timestamp_pb2 import Timestamp

import harness

STATUSES = ("running", "completed", "failed", "cancelled")
OLD = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
# As often as not executions start in the same millisecond, and a few have no time at all.
MOMENTS = 150


def made_up(count):
    """Documents as a program writes them that knows nothing of a server."""
    dice = random.Random(7)
    for number in range(count):
        app = dice.randrange(5)
        started = None if dice.random() < 0.02 else OLD + datetime.timedelta(minutes=dice.randrange(MOMENTS))
        status = dice.choices(STATUSES, (10, 70, 15, 5))[0]
        ended = status != "running" and started is not None
        seconds = dice.randrange(600)
        yield {
            "execution_id": f"{dice.getrandbits(128):032x}",
            "app_id": app if app else None,
            "app_name": f"app {app}",
            "sub_app_id": None,
            "sub_app_name": None,
            "user_id": f"user {dice.randrange(4)}",
            "status": status,
            "started_at": started,
            "completed_at": started + datetime.timedelta(seconds=seconds) if ended else None,
            "duration_ms": seconds * 1000 if ended else None,
            "error": "it broke" if status == "failed" else None,
            "metadata": {"number": number},
            "created_at": OLD,
            "updated_at": OLD,
        }


def steps_of(execution_id, count):
    """Steps in an order of their own, as parallel programs store them."""
    numbers = list(range(count))
    random.Random(count).shuffle(numbers)
    for number in numbers:
        yield {
            "execution_id": execution_id,
            "step_id": number,
            "step_name": f"step {number % 3}",
            "status": "completed",
            "started_at": OLD,
            "completed_at": OLD,
            "duration_ms": 0,
            "input": {},
            "output": None,
            "error": None,
            "retry_count": 0,
            "metadata": {},
        }


class Lists(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.pb = harness.stubs()
        mongodb = harness.shared_mongodb()
        name = f"lists_{time.time_ns()}"
        cls.database = mongodb.client.get_database(name, codec_options=CodecOptions(tz_aware=True))
        cls.server = harness.Server(mongodb.uri, database=name)
        cls.addClassCleanup(cls.server.stop)
        cls.addClassCleanup(mongodb.client.drop_database, name)
        documents = list(made_up(500))
        cls.database.executions.insert_many(documents)
        for number, document in enumerate(documents[:5]):
            cls.database.execution_steps.insert_many(steps_of(document["execution_id"], 1 + number * 60))

    def all_pages(self, **filters):
        """Ids of a list, page by page."""
        stub = self.pb.execution_grpc.ExecutionServiceStub(self.server.channel)
        filter = self.pb.common.ExecutionFilter(**filters)
        request, ids = self.pb.execution.ListExecutionsRequest(filter=filter, page_size=7), []
        while True:
            page = stub.ListExecutions(request)
            ids += [execution.execution_id for execution in page.executions]
            if not page.next_page_token:
                return ids
            request.page_token = page.next_page_token

    def find(self, filter):
        # The time alone leaves open what comes first of the same millisecond.
        found = self.database.executions.find(filter).sort([("started_at", -1), ("execution_id", -1)])
        return [document["execution_id"] for document in found]

    def compare(self, filters, filter):
        through_server, straight = self.all_pages(**filters), self.find(filter)
        self.assertEqual(through_server, straight, filters)
        return len(straight)

    def status(self, word):
        return self.pb.common.ExecutionStatus.Value(f"EXECUTION_STATUS_{word.upper()}")

    def distinct(self, field):
        return [value for value in self.database.executions.distinct(field) if value is not None]

    def test_a_user_s_executions_newest_first(self):
        for user_id in self.distinct("user_id"):
            self.assertTrue(self.compare({"user_ids": [user_id]}, {"user_id": user_id}))

    def test_failed_executions_since_a_time(self):
        starts = sorted(self.distinct("started_at"))
        compared = 0
        for since in (starts[0], starts[len(starts) // 2], starts[-1]):
            started_at_from = Timestamp()
            started_at_from.FromDatetime(since)
            filters = {"statuses": [self.status("failed")], "started_at_from": started_at_from}
            compared += self.compare(filters, {"status": "failed", "started_at": {"$gte": since}})
        self.assertTrue(compared)

    def test_running_executions_of_an_app(self):
        compared = 0
        running = [self.status("running")]
        for name in self.distinct("app_name"):
            compared += self.compare(
                {"app_names": [name], "statuses": running}, {"app_name": name, "status": "running"}
            )
        for app_id in self.distinct("app_id"):
            compared += self.compare(
                {"app_ids": [app_id], "statuses": running}, {"app_id": app_id, "status": "running"}
            )
        self.assertTrue(compared)

    def test_steps_of_an_execution_in_order(self):
        stub = self.pb.step_grpc.StepServiceStub(self.server.channel)
        compared = 0
        for execution_id in self.database.execution_steps.distinct("execution_id"):
            request, through_server = self.pb.step.ListStepsRequest(execution_id=execution_id, page_size=100), []
            while True:
                page = stub.ListSteps(request)
                through_server += [(step.step_id, step.step_name) for step in page.steps]
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            found = self.database.execution_steps.find({"execution_id": execution_id}).sort("step_id", 1)
            self.assertEqual(through_server, [(step["step_id"], step["step_name"]) for step in found])
            compared += len(through_server)
        self.assertTrue(compared)


if __name__ == "__main__":
    unittest.main(verbosity=2)
