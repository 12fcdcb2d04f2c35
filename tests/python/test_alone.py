"""What a caller of one app gets from a server that holds another app with alike data, and from one that never held it: byte
by byte the same, but for ids that a server makes and the times at which it did something."""

import itertools
import os
import time
import unittest

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

import harness
import trust
from trust import Guarded, refusal

START = 1_750_000_000
# Made by the server, or when it did something: everything else has to be the same.
MADE = {
    "artifact_id", "created_at", "updated_at", "revision", "storage_path", "resume_token", "next_page_token", "exact_since",
    "counted_until", "database_id", "position", "since_position", "until_position", "digest", "created_by",
}  # fmt: skip
REPORTS = {"filter": {"started_at_from": {"seconds": START - 3600}, "started_at_until": {"seconds": START + 86_400}}}


def without_made(message):
    """A message without what a server makes; of a token stays whether there is one."""
    for field, value in message.ListFields():
        if field.name in MADE:
            message.ClearField(field.name)
            if field.name == "next_page_token":
                message.next_page_token = "there is more"
        elif field.message_type and not field.message_type.GetOptions().map_entry:
            for one in value if field.is_repeated else [value]:
                without_made(one)
    return message


def plain(message):
    """Its bytes."""
    copy = type(message)()
    copy.CopyFrom(message)
    return without_made(copy).SerializeToString(deterministic=True)


def fill(admin, apps, now):
    """Everything that there can be of a run, for each app in turn, so that the records of all lie between each other."""
    pb = harness.stubs()
    at = lambda seconds: {"seconds": START + seconds}
    for number, app in itertools.product(range(12), apps):
        id, failed = f"{app}-{number}", number % 3 == 0
        error = {"message": f"cannot open the valve {number % 2}", "code": "STUCK"} if failed else None
        admin.call(
            "ExecutionService/CreateExecution",
            execution_id=id,
            app_name=app,
            user_id=f"user{number % 3}",
            sub_app_name=f"part{number % 2}",
            metadata=trust.metadata(number=number, even=number % 2 == 0),
            started_at=at(number * 600),
        )
        admin.call(
            "StepService/FinishStep",
            execution_id=id,
            step_id=1,
            step_name="work",
            started_at=at(number * 600),
            completed_at=at(number * 600 + number),
            status=4 if failed else 3,
            error=error,
            output={"string_value": f"the valve of run {number} is {'rusty ' * (number % 4)}open"},
        )
        admin.call("StepService/PlanSteps", execution_id=id, steps=[{"step_id": 2, "step_name": "later"}])
        points = [{"metrics": {"pressure": float(number + n)}, "timestamp": {"seconds": now - n}} for n in range(5)]
        admin.call("MetricService/RecordMetrics", execution_id=id, points=points)
        upload = pb.artifact.UploadArtifactRequest
        description = {"execution_id": id, "artifact_type": "log", "artifact_name": "log", "mime_type": "text/plain"}
        parts = [upload(description=description), upload(chunk=f"a log of the valve {number}".encode())]
        admin.call("ArtifactService/UploadArtifact", iter(parts))
        if number < 11:
            finish = {"status": 3 if failed else 2, "completed_at": at(number * 600 + 2 * number)}
            admin.call("ExecutionService/FinishExecution", execution_id=id, error=error, **finish)
    for version, app in itertools.product(("1", "2", "3"), apps):
        configuration = {"app_name": app, "version": version, "configuration": trust.metadata(valve=version)}
        admin.call("ConfigurationService/PublishConfiguration", configuration=configuration, activate=version == "2")


def questions():
    """Everything that one can ask about many records, and about some: the method, and the fields of the request."""
    filters = [
        {},
        {"app_names": ["ours"]},
        {"app_names": ["theirs"]},
        {"app_names": ["ours", "theirs"]},
        {"statuses": [3]},
        {"statuses": [1]},
        {"user_ids": ["user1"]},
        {"min_duration_ms": 5000},
        {"metadata": {"even": {"bool_value": True}}},
        {"sub_app_ids": [1]},
        {"started_at_from": {"seconds": START + 1800}, "started_at_until": {"seconds": START + 4200}},
    ]
    for filter, order, size in itertools.product(filters, (1, 2), (1, 5, 1000)):
        yield "ExecutionService/ListExecutions", {
            "filter": filter, "order": order, "page_size": size, "include_step_counts": True,
        }  # fmt: skip
    for filter, limit in itertools.product(filters, (0, 3, 12, 13)):
        yield "ExecutionService/CountExecutions", {"filter": filter, "limit": limit}
    for number in range(12):
        id = f"ours-{number}"
        yield "ExecutionService/GetExecution", {"execution_id": id, "view": 2}
        yield "StepService/ListSteps", {"execution_id": id, "include_payloads": True}
        yield "ArtifactService/ListArtifacts", {"execution_id": id}
        yield "MetricService/QueryMetrics", {"execution_id": id}
    yield "MetricService/QueryMetrics", {"execution_id": "ours-3", "interval": {"seconds": 60}}
    for id in ("theirs-0", "nobodys-0"):
        yield "ExecutionService/GetExecution", {"execution_id": id}
        yield "StepService/ListSteps", {"execution_id": id}
        yield "ArtifactService/ListArtifacts", {"execution_id": id}
        yield "MetricService/QueryMetrics", {"execution_id": id}
        yield "ExecutionService/WatchExecution", {"execution_id": id}
    for app in ("ours", "theirs"):
        for size in (1, 50):
            yield "ConfigurationService/ListConfigurations", {"app_name": app, "page_size": size}
        yield "ConfigurationService/GetConfiguration", {"app_name": app}
        yield "ConfigurationService/GetConfiguration", {"app_name": app, "version": "1"}
    yield "ConfigurationService/ListConfigurations", {}
    for group, limit in itertools.product((1, 2, 3), (0, 1)):
        yield "AnalyticsService/GetSuccessRates", {"group_by": group, "limit": limit, **REPORTS}
        yield "AnalyticsService/GetSuccessRates", {"group_by": group, "limit": limit}
    for period, limit in itertools.product((1, 2, 3), (0, 1)):
        yield "AnalyticsService/GetReport", {"period": period, "limit": limit, **REPORTS}
    for seconds, limit in itertools.product((900, 86_400), (0, 1)):
        yield "AnalyticsService/GetTrends", {"interval": {"seconds": seconds}, "limit": limit, **REPORTS}
    for limit in (0, 1):
        yield "AnalyticsService/GetUserActivity", {"limit": limit, **REPORTS}
        yield "AnalyticsService/ListTopErrors", {"limit": limit, "samples": 3, **REPORTS}
    # A bound on what is read counts what the caller may see.
    for most, limit in itertools.product((0, 3, 12), (0, 1)):
        yield "AnalyticsService/ListSlowestSteps", {"max_executions": most, "limit": limit, **REPORTS}
    for by_status in ({"statuses": [3]}, {"user_ids": ["user2"]}, {"min_duration_ms": 5000}):
        filter = {"filter": {**REPORTS["filter"], **by_status}}
        for name in ("GetSuccessRates", "GetReport", "GetTrends", "GetUserActivity", "ListSlowestSteps", "ListTopErrors"):
            yield f"AnalyticsService/{name}", filter
    yield "NotificationService/ListSubscriptions", {}
    yield "AdminService/GetServerInfo", {}


def asked(caller, name, fields):
    """All pages of an answer, or how it was refused, word by word."""
    pages, token = [], ""
    while True:
        try:
            more = {"page_token": token} if token else {}
            page = complete(caller, name, {**fields, **more})
        except grpc.RpcError as error:
            return [(refusal(error), error.details())]
        pages += [plain(one) for one in (page if isinstance(page, list) else [page])]
        token = getattr(page, "next_page_token", "")
        if not token:
            return pages


def complete(caller, name, fields):
    """An answer once reports and search are up to date."""
    if name.startswith("AnalyticsService"):
        is_complete = lambda page: page.freshness.counted_until.seconds or not page.freshness.exact_since.seconds
        return harness.wait_until(name, lambda: (page := caller.call(name, **fields)) and is_complete(page) and page)
    if name.startswith("SearchService"):
        return harness.wait_until(name, lambda: (page := caller.call(name, **fields)).up_to_date and page)
    return caller.call(name, **fields)


class Alone(unittest.TestCase):
    def both(self, store):
        """A server of two apps and one of one; and callers of that one, at both."""
        now = int(time.time())
        pair = []
        for apps in (("theirs", "ours"), ("ours",)):
            guarded = self.enterContext(Guarded(store))
            admin = guarded.admin(guarded.serve())
            fill(admin, apps, now)
            pair.append((guarded, admin))
        return pair

    def callers(self, pair, apps, role="editor"):
        return [admin.caller(role, apps) for _, admin in pair]

    def test_answers_are_the_same_byte_by_byte(self):
        for store in trust.STORES:
            with self.subTest(store):
                pair = self.both(store)
                told = 0
                for apps in (["ours"], ["our*"], ["ours#*", "nobody"]):
                    beside, alone = self.callers(pair, apps)
                    for name, fields in questions():
                        answers = asked(beside, name, fields)
                        expected = asked(alone, name, fields)
                        self.assertEqual(answers, expected, f"{apps} {name} {fields}")
                        told += len(answers)
                    for kinds in ([], [1], [2]):
                        exported = [self.exported(caller, kinds) for caller in (beside, alone)]
                        self.assertEqual(exported[0], exported[1], f"{apps} export of {kinds}")
                        self.assertGreater(len(exported[0]), 12)
                # The same questions find something of both apps, asked by somebody who may see both.
                for admin, apps in ((pair[0][1], {"ours", "theirs"}), (pair[1][1], {"ours"})):
                    page = admin.call("ExecutionService/ListExecutions", page_size=1000)
                    self.assertEqual({one.app_name for one in page.executions}, apps)
                    self.assertEqual(len(page.executions), 12 * len(apps))
                print(f"{store}: {told} answers the same", flush=True)

    def exported(self, caller, kinds):
        """Records of an export, in an order that does not depend on ids that a server makes."""
        return sorted(plain(one) for one in caller.call("ExportService/Export", kinds=kinds))

    def hits(self, caller, query, size, **fields):
        hits, token = [], ""
        while True:
            page = complete(caller, "SearchService/Search", {"query": query, "page_size": size, "page_token": token, **fields})
            hits += page.hits
            token = page.next_page_token
            if not token:
                return hits

    def test_search_finds_the_same_with_the_same_scores(self):
        for store in trust.STORES:
            with self.subTest(store):
                pair = self.both(store)
                # Words that the other app has as often (those of both), now and then, and far more often.
                for _, admin in pair:
                    for number in range(12):
                        self.fail_with(admin, "ours", f"ours-x{number}", f"a stopcock {'drips ' * number}")
                for number in range(40):
                    self.fail_with(pair[0][1], "theirs", f"theirs-x{number}", "a stopcock" if number < 3 else "it drips")
                same = 0
                for apps in (["ours"], ["our*"]):
                    callers = self.callers(pair, apps, "viewer")
                    for size in (3, 1000):
                        beside, alone = [self.hits(caller, "stopcock", size) for caller in callers]
                        self.assertEqual([plain(hit) for hit in beside], [plain(hit) for hit in alone])
                        self.assertEqual(len(beside), 12)
                        self.assertEqual(len({hit.score for hit in beside}), 12)
                        same += len(beside)
                    for query in ("valve", "valve rusty", '"cannot open"', "val* -rusty", "stuck", "drips", "stopcock drips"):
                        for fields in ({}, {"kinds": [3]}, {"filter": {"statuses": [3]}}, {"filter": {"app_names": ["theirs"]}}):
                            beside, alone = [self.hits(caller, query, 7, **fields) for caller in callers]
                            self.assertEqual(
                                sorted(plain(hit) for hit in beside), sorted(plain(hit) for hit in alone), f"{query} {fields}"
                            )
                            self.assertEqual(bool(beside), fields != {"filter": {"app_names": ["theirs"]}} and bool(alone))
                            same += len(beside)
                self.assertGreater(same, 60)
                print(f"{store}: {same} hits the same with their scores", flush=True)

    def fail_with(self, admin, app, id, message):
        admin.call("ExecutionService/CreateExecution", execution_id=id, app_name=app, started_at={"seconds": START})
        error = {"message": message}
        finish = {"completed_at": {"seconds": START + 1}, "status": 3, "error": error}
        admin.call("ExecutionService/FinishExecution", execution_id=id, **finish)

    def test_watches_tell_the_same(self):
        for store in trust.STORES:
            with self.subTest(store):
                pair = self.both(store)
                told = 0
                for apps, watch in itertools.product((["ours"], ["our*"]), self.watches()):
                    seen = []
                    for (_, admin), caller in zip(pair, self.callers(pair, apps, "viewer")):
                        name, fields = watch
                        call = caller.open(name, None, 60, **fields)
                        events = iter(call)
                        mine = [plain(event) for event in self.snapshot(events)]
                        for change in self.changes(admin, "theirs" if admin is pair[0][1] else None):
                            change()
                            # Each before the next, so that no two are told as one.
                            mine.append(plain(next(event for event in events if not event.HasField("keepalive"))))
                        call.cancel()
                        seen.append(mine)
                        admin.call("ExecutionService/DeleteExecution", execution_id="ours-live", force=True)
                        if admin is pair[0][1]:
                            admin.call("ExecutionService/DeleteExecution", execution_id="theirs-live", force=True)
                    self.assertEqual(seen[0], seen[1], f"{apps} {watch}")
                    self.assertGreater(len(seen[0]), 5)
                    told += len(seen[0])
                print(f"{store}: {told} events the same", flush=True)

    def watches(self):
        all = "ExecutionService/WatchExecutions"
        yield all, {"snapshot": 1, "include_steps": True, "include_payloads": True}
        yield all, {"snapshot": 2, "include_steps": True}
        yield all, {"snapshot": 3, "include_steps": True, "filter": {"app_names": ["ours", "theirs"]}}

    def snapshot(self, events):
        """What there is, in an order of its own."""
        found = []
        for event in events:
            if event.HasField("snapshot_complete"):
                return sorted(found, key=plain)
            found.append(event)

    def changes(self, admin, other):
        """Writes that a watch tells of, one after the other; before each the same of the other app."""
        writes = [
            ("ExecutionService/CreateExecution", {"app_name": None, "started_at": {"seconds": START}}),
            ("StepService/StartStep", {"step_id": 1, "step_name": "work", "started_at": {"seconds": START}}),
            ("StepService/UpdateStep", {"step_id": 1, "progress": 0.5, "progress_message": "half"}),
            ("StepService/FinishStep", {"step_id": 1, "status": 3, "completed_at": {"seconds": START + 1}}),
            ("ExecutionService/UpdateExecution", {"metadata": trust.metadata(valve=1)}),
            ("ExecutionService/FinishExecution", {"status": 2, "completed_at": {"seconds": START + 2}}),
        ]
        for name, fields in writes:

            def change(name=name, fields=fields):
                for app in filter(None, (other, "ours")):
                    more = {"app_name": app} if "app_name" in fields else {}
                    admin.call(name, execution_id=f"{app}-live", **{**fields, **more})

            yield change


if __name__ == "__main__":
    unittest.main()
