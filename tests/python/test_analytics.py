"""GetSuccessRates against the aggregation that people run with pymongo, on the same documents: on generated ones that
another program stored, and with $STEPWELL_DATA_SETS on real ones that were imported."""

import datetime
import os
import pathlib
import random
import time
import unittest

import harness

SETS = os.environ.get("STEPWELL_DATA_SETS")


def status_is(status):
    return {"$sum": {"$cond": [{"$eq": ["$status", status]}, 1, 0]}}


def aggregation(key):
    """Counts by status and the mean duration, by a key of the documents."""
    return [
        {
            "$group": {
                "_id": key,
                "total": {"$sum": 1},
                "completed": status_is("completed"),
                "failed": status_is("failed"),
                "cancelled": status_is("cancelled"),
                "running": status_is("running"),
                "mean_duration_ms": {"$avg": "$duration_ms"},
            }
        }
    ]


def document(number):
    chance = random.Random(number)
    app = chance.randrange(5)
    status = chance.choice(["completed"] * 6 + ["failed", "failed", "cancelled", "running"])
    started = datetime.datetime(2026, 3, 1) + datetime.timedelta(milliseconds=chance.randrange(40 * 86_400_000))
    return {
        "execution_id": f"e{number}",
        "app_id": app if app else None,
        "app_name": f"app {app}",
        "sub_app_id": chance.randrange(2) if app == 3 else None,
        "sub_app_name": None,
        "user_id": chance.choice([None, "ann", "bo", "Zoë"]),
        "status": status,
        "started_at": started,
        "completed_at": None,
        "duration_ms": None if status == "running" else chance.randrange(1_000_000),
        "error": "timeout after 30 s" if status == "failed" else None,
        "metadata": {},
        "created_at": started,
        "updated_at": started,
    }


class SuccessRates(unittest.TestCase):
    def start(self):
        self.pb = harness.stubs()
        self.mongodb = harness.shared_mongodb()
        name = f"analytics_{time.time_ns()}"
        self.executions = self.mongodb.client[name].executions
        self.server = harness.Server(self.mongodb.uri, database=name)
        self.addCleanup(self.server.stop)
        self.stub = self.pb.analytics_grpc.AnalyticsServiceStub(self.server.channel)

    def told(self, group_by, key):
        request = self.pb.analytics.GetSuccessRatesRequest(group_by=group_by)

        def answer():
            # What another program stored comes through the log of changes.
            reply = self.stub.GetSuccessRates(request)
            return reply if reply.freshness.complete else None

        reply = harness.wait_until("complete", answer)
        groups = {}
        for group in reply.groups:
            self.assertEqual(group.success_rate, group.completed / group.total)
            mean = group.mean_duration_ms if group.HasField("mean_duration_ms") else None
            counts = (group.total, group.completed, group.failed, group.cancelled, group.running)
            self.assertNotIn(key(group), groups)
            groups[key(group)] = (counts, mean)
        self.assertEqual(reply.total_groups, len(groups))
        return groups

    def compare(self):
        optional = lambda message, field: getattr(message, field) if message.HasField(field) else None
        app = {"app_id": {"$ifNull": ["$app_id", None]}, "app_name": "$app_name"}
        sub_app = {name: {"$ifNull": [f"${name}", None]} for name in ("sub_app_id", "sub_app_name")}
        compared = 0
        for group_by, key, of_reply in (
            ("SUCCESS_RATE_GROUP_BY_APP", app, lambda group: (optional(group, "app_id"), group.app_name)),
            (
                "SUCCESS_RATE_GROUP_BY_SUB_APP",
                {**app, **sub_app},
                lambda group: (
                    optional(group, "app_id"),
                    group.app_name,
                    optional(group, "sub_app_id"),
                    optional(group, "sub_app_name"),
                ),
            ),
            (
                "SUCCESS_RATE_GROUP_BY_USER",
                {"user_id": {"$ifNull": ["$user_id", None]}},
                lambda group: (optional(group, "user_id"),),
            ),
        ):
            wanted = {}
            for row in self.executions.aggregate(aggregation(key)):
                counts = tuple(row[name] for name in ("total", "completed", "failed", "cancelled", "running"))
                wanted[tuple(row["_id"].values())] = (counts, row["mean_duration_ms"])
            told = self.told(group_by, of_reply)
            self.assertEqual(set(told), set(wanted), group_by)
            for group, (counts, mean) in wanted.items():
                self.assertEqual(told[group][0], counts, (group_by, group))
                if mean is None:
                    self.assertIsNone(told[group][1])
                else:
                    self.assertAlmostEqual(told[group][1], mean, delta=1e-9 * max(mean, 1))
            compared += len(wanted)
        return compared

    def test_documents_of_another_program(self):
        self.start()
        self.executions.insert_many(document(number) for number in range(2000))
        self.assertGreater(self.compare(), 10)
        self.executions.update_many({"status": "running"}, {"$set": {"status": "failed"}})
        self.executions.update_many({"app_id": 1}, {"$set": {"duration_ms": 5}})
        self.compare()

    @unittest.skipUnless(SETS, "no real data: set STEPWELL_DATA_SETS")
    def test_real_documents(self):
        self.start()
        sets = sorted({path.parent for path in pathlib.Path(SETS).glob("*/executions.jsonl*")})
        for folder in sets:
            harness.stepwell("import", str(folder), "--server", self.server.address, check=False)
        self.assertGreater(self.executions.count_documents({}), 0)
        groups = self.compare()
        print(f"real documents: {groups} groups of {self.executions.count_documents({})} executions", flush=True)


if __name__ == "__main__":
    unittest.main(verbosity=2)
