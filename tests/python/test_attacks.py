"""What somebody tries who is on the network, or has a key for one app and wants another: what tests/doors/ and
tests/conformance/ do not try already, at a server as it is shipped."""

import contextlib
import itertools
import os
import socket
import threading
import time
import unittest

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import bson
import grpc

import harness
import trust
from trust import Caller, Guarded, detail, refusal

BAD_MOST = 20
INVALID = ("UNAUTHENTICATED", "CREDENTIAL_INVALID")
LIMITED = ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
TOKEN = ("INVALID_ARGUMENT", "INVALID_TOKEN")


class Proxy:
    """Passes connections on from another address of this machine."""

    def __init__(self, to, address):
        host, port = to.split(":")
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.sockets = [self.listener]

        def pump(one, other):
            with contextlib.suppress(OSError):
                while part := one.recv(65536):
                    other.sendall(part)
            with contextlib.suppress(OSError):
                other.shutdown(socket.SHUT_WR)

        def accept():
            while True:
                try:
                    near, _ = self.listener.accept()
                except OSError:
                    return
                far = socket.create_connection((host, int(port)), source_address=(address, 0))
                self.sockets += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


class Guesses(unittest.TestCase):
    def test_twenty_bad_credentials_and_no_more(self):
        with Guarded("sqlite") as guarded:
            server = guarded.serve("--log-level", "debug")
            good = guarded.admin(server)
            nobody = Caller(server.channel)
            bad = Caller.with_key(server.channel, "swk_nonsense")
            # None is not a bad one, however often.
            for _ in range(BAD_MOST * 2):
                self.assertEqual(nobody.refused("AuthService/WhoAmI"), ("UNAUTHENTICATED", "CREDENTIAL_MISSING"))
            began = time.monotonic()
            answers = [bad.refused("AuthService/WhoAmI") for _ in range(BAD_MOST + 5)]
            self.assertEqual(answers, [INVALID] * BAD_MOST + [LIMITED] * 5)
            with self.assertRaises(grpc.RpcError) as limited:
                bad.who()
            delay = detail(limited.exception, "RetryInfo").retry_delay
            self.assertLessEqual(delay.seconds + delay.nanos / 1e9, 10)
            # A flood of them leaves good ones alone, and little behind.
            lines = server.log().count("\n")
            stop, refused = threading.Event(), []

            def flood():
                caller = Caller.with_key(server.channel, "swk_more")
                while not stop.is_set():
                    refused.append(caller.refused("AuthService/WhoAmI"))

            floods = [threading.Thread(target=flood, daemon=True) for _ in range(4)]
            for one in floods:
                one.start()
            for _ in range(100):
                good.who()
            harness.wait_until("a flood", lambda: len(refused) > 1000)
            stop.set()
            for one in floods:
                one.join(30)
            passed = time.monotonic() - began
            # Each ten seconds twenty more are looked into.
            looked_into = sum(answer == INVALID for answer in refused)
            self.assertLessEqual(looked_into, BAD_MOST * int(passed // 10 + 1))
            self.assertEqual(set(refused) - {INVALID, LIMITED}, set())
            said = [line for line in server.log().splitlines()[lines:] if "WARN" in line or "INFO" in line or "ERROR" in line]
            self.assertLess(len(said), 20, said[:30])
            # From elsewhere they are counted apart.
            with Proxy(server.address, "127.0.0.2") as proxy, grpc.insecure_channel(proxy.address) as channel:
                elsewhere = Caller.with_key(channel, "swk_nonsense")
                answers = [elsewhere.refused("AuthService/WhoAmI") for _ in range(BAD_MOST + 1)]
                self.assertEqual(answers, [INVALID] * BAD_MOST + [LIMITED])
            # When they are counted anew, it is looked into again.
            harness.wait_until("they are looked into again", lambda: bad.refused("AuthService/WhoAmI") == INVALID, 15)
            self.assertEqual(server.stop(), 0)
            records = [bson.decode(raw) for raw in guarded.records()]
            told = [one for one in records if one["event"] == "credential.refuse"]
            self.assertLess(len(told), 20, "they are counted, not told one by one")
            by_address = {one["peer"] for one in told}
            self.assertEqual(by_address, {"127.0.0.1", "127.0.0.2"})
            counted = sum(one["count"] for one in told if one["reason"] == "CREDENTIAL_INVALID")
            print(f"{len(refused)} bad ones in a flood, {looked_into} looked into, {len(told)} records of {counted}", flush=True)

    def test_what_is_sent_as_authorization_is_one_credential(self):
        with Guarded("sqlite") as guarded:
            server = guarded.serve()
            key = guarded.admin_key
            for good in (f"Bearer {key}", f"bearer {key}"):
                self.assertIsNone(Caller(server.channel, good).refused("AuthService/WhoAmI"))
            for bad in (
                f"Bearer {key}, Bearer {key}",
                f"Bearer {key},{key}",
                f"Bearer {key} {key}",
                f"Bearer {key};",
                f"Bearer Bearer {key}",
                f"Bearer{key}",
                f"Token {key}",
                key,
                f"Bearer {key.upper()}",
                f"Bearer {key[:-1]}",
                f"Bearer {key}a",
                f"Bearer sha256:{guarded.admin_key}",
            ):
                caller = Caller(server.channel, bad)
                self.assertEqual(caller.refused("AuthService/WhoAmI"), INVALID, bad.replace(key, "KEY"))
            # Others that carry it are no credential.
            caller = Caller(server.channel)
            for name in ("proxy-authorization", "x-authorization", "cookie", "authorization-bin"):
                value = f"Bearer {key}"
                caller.metadata = [(name, value.encode() if name.endswith("-bin") else value)]
                self.assertEqual(caller.refused("AuthService/WhoAmI"), ("UNAUTHENTICATED", "CREDENTIAL_MISSING"), name)


class Scopes(unittest.TestCase):
    def fill(self, admin, app, prefix, **fields):
        pb = harness.stubs()
        for number in range(4):
            id = f"{prefix}-{number}"
            admin.call("ExecutionService/CreateExecution", execution_id=id, app_name=app, **fields)
            for step in (1, 2, 3):
                error = {"message": f"cannot open the valve {step}"}
                step = {"execution_id": id, "step_id": step, "step_name": "work"}
                admin.call("StepService/FinishStep", status=4, error=error, **step)
            upload = pb.artifact.UploadArtifactRequest
            for name in ("a", "b", "c"):
                description = {"execution_id": id, "artifact_type": "log", "artifact_name": name}
                parts = [upload(description=description), upload(chunk=b"words")]
                admin.call("ArtifactService/UploadArtifact", iter(parts))
            now = int(time.time())
            points = [{"metrics": {"m": 1.0}, "timestamp": {"seconds": now - ago}} for ago in range(3)]
            admin.call("MetricService/RecordMetrics", execution_id=id, points=points)

    # Every list that has pages, with what is asked for beside the page. Those of auditors are of what is done with keys.
    LISTS = {
        "ExecutionService/ListExecutions": {},
        "StepService/ListSteps": {"execution_id": "ours-0"},
        "ArtifactService/ListArtifacts": {"execution_id": "ours-0"},
        "MetricService/QueryMetrics": {"execution_id": "ours-0"},
        "ConfigurationService/ListConfigurations": {"app_name": "ours"},
        "SearchService/Search": {"query": "valve"},
        "NotificationService/ListSubscriptions": {},
    }
    OF_AUDITORS = {"AuthService/ListKeys": {}, "AuditService/ListAuditEvents": {}}

    def test_tokens_are_good_for_the_scope_that_they_were_given_to(self):
        for store in trust.STORES:
            with self.subTest(store), Guarded(store) as guarded, Guarded(store) as elsewhere:
                self.check_tokens(guarded, elsewhere)

    def everybody(self, guarded, role):
        server = guarded.serve() if not guarded.servers else guarded.servers[0]
        admin = guarded.admin(server)
        scopes = {"ours": ["ours"], "the same": ["ours"], "wider": ["our*"], "more": ["ours", "theirs"], "theirs": ["theirs"]}
        return admin, {name: admin.caller(role, apps) for name, apps in scopes.items()} | {"admin": admin}

    def check_tokens(self, guarded, elsewhere):
        asked = 0
        admin, callers = self.everybody(guarded, "editor")
        other_admin, others = self.everybody(elsewhere, "editor")
        for one, of in ((admin, callers), (other_admin, others)):
            self.fill(one, "ours", "ours")
            self.fill(one, "theirs", "theirs")
            for app, version in itertools.product(("ours", "theirs"), ("1", "2", "3")):
                one.call("ConfigurationService/PublishConfiguration", configuration={"app_name": app, "version": version})
            for caller, number in itertools.product((of["ours"], of["theirs"]), range(3)):
                subscription = {"name": f"s{number}", "events": [2], "url": "https://example.com/", "enabled": False}
                caller.call("NotificationService/CreateSubscription", **subscription)
        _, auditors = self.everybody(guarded, "auditor")
        _, other_auditors = self.everybody(elsewhere, "auditor")
        for number in range(3):
            admin.key("viewer", ["ours"])
            other_admin.key("viewer", ["ours"])
        lists = [(name, fields, callers, others) for name, fields in self.LISTS.items()]
        lists += [(name, fields, auditors, other_auditors) for name, fields in self.OF_AUDITORS.items()]
        for name, fields, callers, others in lists:
            first = harness.wait_until(
                "there is a second page",
                lambda: (page := callers["ours"].call(name, page_size=1, **fields)).next_page_token and page,
            )
            token = first.next_page_token
            again = lambda caller: caller.refused(name, page_size=1, page_token=token, **fields)
            self.assertIsNone(again(callers["ours"]), name)
            self.assertIsNone(again(callers["the same"]), name)
            for whose in ("wider", "more", "theirs", "admin"):
                expected = [TOKEN] if whose != "theirs" or "execution_id" not in fields else [TOKEN, ("NOT_FOUND", "EXECUTION_NOT_FOUND")]
                self.assertIn(again(callers[whose]), expected, f"{name} by {whose}")
                asked += 1
            self.assertEqual(again(others["ours"]), TOKEN, f"{name} of another database")
        # Where a watch was, and an export.
        watches = {
            "ExecutionService/WatchExecutions": {},
            "ExecutionService/WatchExecution": {"execution_id": "ours-0", "follow": True},
        }
        for name, fields in watches.items():
            callers, others = lists[0][2], lists[0][3]
            token = self.first_token(callers["ours"], name, **fields)
            for whose, caller in [*callers.items(), ("elsewhere", others["ours"])]:
                try:
                    call = caller.open(name, None, 10, resume_token=token, **fields)
                    # Who may go on is told of what happens now.
                    if whose in ("ours", "the same"):
                        admin.call("ExecutionService/UpdateExecution", execution_id="ours-0", metadata=trust.metadata(a=whose))
                        while not next(call).HasField("execution"):
                            pass
                        call.cancel()
                        continue
                    told = [event for event in call]
                    self.fail(f"{name} by {whose}: {told}")
                except grpc.RpcError as error:
                    self.assertIn(refusal(error), [TOKEN, ("NOT_FOUND", "EXECUTION_NOT_FOUND")], f"{name} by {whose}")
                    self.assertTrue(whose == "theirs" or refusal(error) == TOKEN, f"{name} by {whose}")
                asked += 1
        callers, others = lists[0][2], lists[0][3]
        exported = callers["ours"].call("ExportService/Export")
        self.assertNotIn(b"theirs-0", b"".join(one.SerializeToString() for one in exported))
        token = exported[0].resume_token
        for whose in ("wider", "more", "theirs", "admin"):
            self.assertEqual(callers[whose].refused("ExportService/Export", resume_token=token), TOKEN, f"Export by {whose}")
            asked += 1
        self.assertEqual(others["ours"].refused("ExportService/Export", resume_token=token), TOKEN)
        print(f"{guarded.store}: {asked} tokens of another scope refused", flush=True)

    def first_token(self, caller, name, **fields):
        call = caller.open(name, None, 30, **fields)
        try:
            for event in call:
                if event.resume_token:
                    return event.resume_token
        finally:
            call.cancel()

    def test_an_app_is_its_name_and_its_number(self):
        for store in trust.STORES:
            with self.subTest(store), Guarded(store) as guarded:
                self.check_numbers(guarded)

    def check_numbers(self, guarded):
        server = guarded.serve()
        admin = guarded.admin(server)
        apps = {"plain": ("mine", None), "seven": ("mine", 7), "eight": ("mine", 8), "other": ("theirs", 7), "long": ("mine2", 7)}
        for prefix, (name, number) in apps.items():
            self.fill(admin, name, prefix, **({} if number is None else {"app_id": number}))
        everything = {f"{prefix}-{number}" for prefix in apps for number in range(4)}
        if guarded.uri:
            # Another program stores one that has a number and no name.
            nameless = {"execution_id": "nameless-0", "app_id": 7, "status": "running", "metadata": {}}
            guarded.database.executions.insert_one(nameless)
            everything.add("nameless-0")
        for bad in ("#7", "mine#", "mine#seven", "#", "mine#7#8", "mine#07", "*#7#", ""):
            with self.subTest(bad):
                with self.assertRaises(grpc.RpcError) as refused:
                    admin.key("viewer", [bad])
                self.assertEqual(refusal(refused.exception), ("INVALID_ARGUMENT", "INVALID_ARGUMENT"))
        harness.wait_until("all is listed", lambda: self.listed(admin) == everything)
        scopes = {
            "mine": {"plain"},
            "mine#7": {"seven"},
            "mine#*": {"plain", "seven", "eight"},
            "theirs": set(),
            "theirs#7": {"other"},
            "mine*#7": {"seven", "long"},
            "mine#8": {"eight"},
        }
        for scope, prefixes in scopes.items():
            caller = admin.caller("editor", [scope])
            expected = {f"{prefix}-{number}" for prefix in prefixes for number in range(4)}
            by_seven = {id for id in expected if apps[id.split("-")[0]][1] == 7}
            filters = {"all": ({}, expected), "app_ids": ({"app_ids": [7]}, by_seven)}
            for what, (filter, ids) in filters.items():
                told = f"{scope} {what}"
                self.assertEqual(self.listed(caller, **filter), ids, told)
                self.assertEqual(caller.call("ExecutionService/CountExecutions", filter=filter).count, len(ids), told)
                # A watch begins with all that there is, by this filter.
                call = caller.open("ExecutionService/WatchExecutions", None, 60, filter=filter, snapshot=1)
                seen = set()
                for event in call:
                    if event.HasField("snapshot_complete"):
                        break
                    seen.add(event.execution.execution.execution_id or event.step.step.execution_id)
                call.cancel()
                self.assertEqual(seen - {""}, ids, told)
                hits = harness.wait_until("the index", lambda: self.found(caller, filter))
                self.assertEqual(set(hits[0]), ids, told)
                rates = harness.wait_until("the reports", lambda: self.rates(caller, filter))
                self.assertEqual(sum(group.total for group in rates.groups), len(ids), told)
                exported = caller.call("ExportService/Export", filter=filter)
                whose = {one.execution.execution_id for one in exported if one.HasField("execution")}
                self.assertEqual(whose, ids, told)
            # Nothing of the others is read, changed or made.
            for id in sorted(everything - expected):
                self.assertEqual(caller.refused("ExecutionService/GetExecution", execution_id=id)[0], "NOT_FOUND", f"{scope} {id}")
                update = {"execution_id": id, "metadata": trust.metadata(a=1)}
                self.assertEqual(caller.refused("ExecutionService/UpdateExecution", **update)[0], "NOT_FOUND", f"{scope} {id}")
                self.assertEqual(
                    caller.refused("ExecutionService/DeleteExecution", execution_id=id, force=True)[0], "NOT_FOUND", f"{scope} {id}"
                )
            for prefix, (name, number) in apps.items():
                if prefix in prefixes:
                    continue
                app = {"app_name": name} | ({} if number is None else {"app_id": number})
                self.assertEqual(
                    caller.refused("ExecutionService/CreateExecution", execution_id="new", **app),
                    ("PERMISSION_DENIED", "SCOPE_FORBIDS"),
                )
        self.assertEqual(self.listed(admin), everything)
        self.check_configurations(admin)

    def check_configurations(self, admin):
        """A configuration is found by the number of its app alone; whose it is decides all the same."""
        publish, get = "ConfigurationService/PublishConfiguration", "ConfigurationService/GetConfiguration"
        ours = {"app_name": "mine", "app_id": 7}
        admin.call(publish, configuration={**ours, "version": "1"}, activate=True)
        stored = admin.call(get, app_id=7)
        stranger, owner = admin.caller("editor", ["theirs#7"]), admin.caller("editor", ["mine#7"])
        for asked in ({}, {"app_name": "theirs"}, {"app_name": "mine"}, {"version": "1"}):
            self.assertEqual(stranger.refused(get, app_id=7, **asked)[0], "NOT_FOUND", asked)
        self.assertEqual(len(stranger.call("ConfigurationService/ListConfigurations", app_id=7).configurations), 0)
        activate = "ConfigurationService/ActivateConfiguration"
        self.assertEqual(stranger.refused(activate, app_id=7, version="1")[0], "NOT_FOUND")
        for version in ("1", "2"):
            for active in (False, True):
                theirs = {"app_name": "theirs", "app_id": 7, "version": version}
                stranger.refused(publish, configuration=theirs, activate=active)
        for caller in (admin, owner):
            self.assertEqual(caller.call(get, app_id=7), stored)
        versions = owner.call("ConfigurationService/ListConfigurations", app_id=7).configurations
        self.assertEqual([one.version for one in versions], ["1"])

    def listed(self, caller, **filter):
        found, token = set(), ""
        while True:
            page = caller.call("ExecutionService/ListExecutions", page_size=3, page_token=token, filter=filter)
            found.update(one.execution_id for one in page.executions)
            token = page.next_page_token
            if not token:
                return found

    def found(self, caller, filter):
        page = caller.call("SearchService/Search", query="valve", page_size=1000, filter=filter)
        return [[hit.execution_id for hit in page.hits]] if page.up_to_date else None

    def rates(self, caller, filter):
        rates = caller.call("AnalyticsService/GetSuccessRates", filter=filter)
        return rates if rates.freshness.complete else None


if __name__ == "__main__":
    unittest.main()
