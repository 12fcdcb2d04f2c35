"""Receives notifications as a program of somebody else would: with the public libraries of Standard Webhooks for Python,
Node and Go, which verify each request with the secret that the subscription was given, on both stores; and from two servers
that are killed again and again, while another receiver does not answer.

$NODE_PATH has to reach standardwebhooks. The same storm with more of everything:

    STEPWELL_NOTIFICATIONS=10000 STEPWELL_NOTIFICATIONS_RATE=500 STEPWELL_NOTIFICATIONS_KILL_SECONDS=10 \\
        python -m unittest test_notifications.Storm

says how many transitions there are (600), how many a second (200), and how often a server is killed (1).
"""

import collections
import datetime
import http.server
import json
import os
import random
import signal
import subprocess
import threading
import time
import unittest

import grpc
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

import harness

STORES = {"sqlite": False, "mongodb": True}
TRANSITIONS = int(os.environ.get("STEPWELL_NOTIFICATIONS", "600"))
RATE = float(os.environ.get("STEPWELL_NOTIFICATIONS_RATE", "200"))
KILL_SECONDS = float(os.environ.get("STEPWELL_NOTIFICATIONS_KILL_SECONDS", "1"))
# Of one program, which waits for each of its answers.
WRITER_RATE = 10
FLAGS = ("--notifications-allow-http", "true", "--notifications-allow-networks", "127.0.0.0/8")


class Receiver:
    """Takes everything that is posted to it; with `hangs` it answers nothing until it ends."""

    def __init__(self, hangs=False):
        received = self.received = []
        over = self.over = threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                received.append((dict(self.headers), body, time.monotonic()))
                if hangs:
                    over.wait()
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                # Whoever posted was killed.
                pass

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


class Notifications(unittest.TestCase):
    def told(self, on_mongodb):
        stubs = harness.stubs()
        service, grpc_service = stubs.notification, stubs.notification_grpc
        uri = harness.shared_mongodb().uri if on_mongodb else None
        with Receiver() as receiver, harness.Server(uri, "notified" if on_mongodb else None, args=FLAGS) as server:
            notifications = grpc_service.NotificationServiceStub(server.channel)
            executions = stubs.execution_grpc.ExecutionServiceStub(server.channel)
            made = notifications.CreateSubscription(
                service.CreateSubscriptionRequest(
                    name="python",
                    events=[service.NOTIFICATION_EVENT_EXECUTION_STARTED, service.NOTIFICATION_EVENT_EXECUTION_FAILED],
                    url=receiver.url,
                )
            )
            executions.CreateExecution(stubs.execution.CreateExecutionRequest(execution_id="e", app_name="app"))
            failed = stubs.common.EXECUTION_STATUS_FAILED
            error = stubs.common.Error(message="broke")
            executions.FinishExecution(
                stubs.execution.FinishExecutionRequest(execution_id="e", status=failed, error=error)
            )
            harness.wait_until("both are told", lambda: len(receiver.received) >= 2)
            rotated = notifications.RotateSecret(
                service.RotateSecretRequest(subscription_id=made.subscription.subscription_id)
            )
            executions.CreateExecution(stubs.execution.CreateExecutionRequest(execution_id="f", app_name="app"))
            harness.wait_until("one more is told", lambda: len(receiver.received) >= 3)
            with self.assertRaises(grpc.RpcError):
                notifications.GetSubscription(service.GetSubscriptionRequest(subscription_id="unknown"))
            return made.secret, rotated.secret, receiver.received

    def test_the_public_library_verifies_every_request(self):
        for store, on_mongodb in STORES.items():
            with self.subTest(store):
                first, second, received = self.told(on_mongodb)
                events = [Webhook(first).verify(body, headers) for headers, body, _ in received]
                kinds = [event["type"] for event in events]
                started, failed = "stepwell.execution.started", "stepwell.execution.failed"
                self.assertEqual(kinds, [started, failed, started])
                self.assertEqual(events[1]["data"]["execution"]["error"]["message"], "broke")
                headers, body, _ = received[2]
                self.assertEqual(Webhook(second).verify(body, headers)["subject"], "f")
                with self.assertRaises(WebhookVerificationError):
                    Webhook(second).verify(received[0][1], received[0][0])
                changed = json.dumps({**json.loads(body), "subject": "g"}).encode()
                with self.assertRaises(WebhookVerificationError):
                    Webhook(second).verify(changed, headers)


class Servers:
    """Two servers of one database, of which one is killed again and again. A call goes to the one, or to the other."""

    def __init__(self, database):
        self.database = database
        self.servers = [self.serve() for _ in range(2)]
        # What comes back is tried at once.
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
        self.channels = [grpc.insecure_channel(server.address, options=options) for server in self.servers]
        self.kills = []

    def serve(self, address=None):
        return harness.Server(harness.shared_mongodb().uri, self.database, args=FLAGS, address=address)

    def kill(self):
        killed = len(self.kills) % 2
        self.kills.append(time.monotonic())
        server = self.servers[killed]
        server.child.send_signal(signal.SIGKILL)
        server.child.wait()
        server.stop()
        self.servers[killed] = self.serve(server.address)

    def call(self, stub, method, request):
        """Again, until it is answered: every request here may be repeated."""
        last = time.monotonic() + 60
        while True:
            for channel in random.sample(self.channels, 2):
                try:
                    return getattr(stub(channel), method)(request, timeout=10)
                except grpc.RpcError as error:
                    passing = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED)
                    if error.code() not in passing or time.monotonic() > last:
                        raise
            time.sleep(0.02)

    def stop(self):
        for channel in self.channels:
            channel.close()
        for server in self.servers:
            server.stop()


class Program:
    """Runs executions of many kinds, through the servers and beside them, and knows what has to be told of each. Also does a
    lot of what is not told."""

    def __init__(self, servers, number, transitions, rate):
        self.servers, self.number, self.rate = servers, number, rate
        self.left = transitions
        self.random = random.Random(number)
        self.db = harness.shared_mongodb().client[servers.database]
        self.stubs = harness.stubs()
        # By execution: what is told, with the moment it was acknowledged.
        self.told = {}
        self.broken = None
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            began, all_of_it, n = time.monotonic(), self.left, 0
            while self.left > 0:
                n += 1
                identity = f"run-{self.number}-{n}"
                self.told[identity] = []
                kind = self.random.choice([self.finished, self.retried, self.cancelled, self.beside])
                for _ in kind(identity):
                    ahead = (all_of_it - self.left) / self.rate - (time.monotonic() - began)
                    if ahead > 0:
                        time.sleep(ahead)
        except Exception as error:
            self.broken = error
            raise

    def happened(self, identity, *events):
        for event in events:
            self.told[identity].append((f"stepwell.{event}", time.monotonic()))
        self.left -= len(events)

    def of_executions(self, method, **fields):
        execution = self.stubs.execution
        request = getattr(execution, f"{method}Request")(**fields)
        return self.servers.call(self.stubs.execution_grpc.ExecutionServiceStub, method, request)

    def of_steps(self, method, **fields):
        request = getattr(self.stubs.step, f"{method}Request")(**fields)
        return self.servers.call(self.stubs.step_grpc.StepServiceStub, method, request)

    def create(self, identity):
        self.of_executions("CreateExecution", execution_id=identity, app_name="app")
        self.happened(identity, "execution.started")

    def finish(self, identity, word):
        common = self.stubs.common
        status = getattr(common, f"EXECUTION_STATUS_{word.upper()}")
        error = common.Error(message="broke") if word == "failed" else None
        fields = {"execution_id": identity, "status": status, "error": error}
        self.of_executions("FinishExecution", **fields)
        self.happened(identity, f"execution.{word}")
        # The answer was lost, for all that the servers know.
        if self.random.random() < 0.3:
            self.of_executions("FinishExecution", **fields)

    def touch(self, identity):
        self.of_executions("UpdateExecution", execution_id=identity, metadata={"n": self.random.random()})

    def finished(self, identity):
        self.create(identity)
        yield
        self.touch(identity)
        self.of_executions("Heartbeat", execution_id=identity)
        self.finish(identity, self.random.choice(["completed", "failed"]))
        self.touch(identity)
        yield

    def retried(self, identity):
        common = self.stubs.common
        self.create(identity)
        yield
        step = {"execution_id": identity, "step_id": 1}
        for attempt in range(1, 1 + self.random.randint(2, 4)):
            self.of_steps("StartStep", **step, step_name="work", attempt=attempt)
            if attempt > 1:
                self.happened(identity, "step.retried")
                yield
            self.of_steps("UpdateStep", **step, progress=0.5)
            self.of_steps("FinishStep", **step, status=common.STEP_STATUS_FAILED, error=common.Error(message=f"of {attempt}"))
            self.happened(identity, "step.failed")
            yield
        self.finish(identity, "failed")
        yield

    def cancelled(self, identity):
        self.create(identity)
        yield
        for _ in range(2):
            self.of_executions("RequestCancel", execution_id=identity, reason="enough")
        self.happened(identity, "execution.cancel_requested")
        yield
        self.finish(identity, "cancelled")
        yield

    def beside(self, identity):
        """By documents, as a program that knows no server."""
        now = datetime.datetime.now(datetime.timezone.utc)
        self.db.executions.insert_one({
            "execution_id": identity, "app_name": "app", "status": "running", "started_at": now, "metadata": {},
            "created_at": now, "updated_at": now,
        })
        self.happened(identity, "execution.started")
        yield
        self.db.executions.update_one({"execution_id": identity}, {"$set": {"metadata.half": True}})
        step = {"execution_id": identity, "step_id": 1}
        self.db.execution_steps.insert_one({
            **step, "step_name": "work", "status": "running", "input": {}, "output": None, "retry_count": 0, "metadata": {},
        })
        self.db.execution_steps.update_one(step, {"$set": {"status": "failed", "error": "broke"}})
        self.happened(identity, "step.failed")
        yield
        self.db.execution_steps.update_one(step, {"$set": {"status": "running", "error": None, "retry_count": 1}})
        self.happened(identity, "step.retried")
        yield
        self.db.execution_steps.update_one(step, {"$set": {"status": "completed", "output": [1]}})
        now = datetime.datetime.now(datetime.timezone.utc)
        self.db.executions.update_one(
            {"execution_id": identity}, {"$set": {"status": "completed", "completed_at": now, "updated_at": now}})
        self.happened(identity, "execution.completed")
        self.db.executions.update_one({"execution_id": identity}, {"$set": {"metadata.late": True}})
        yield


def percentiles(values):
    values = sorted(values)
    at = lambda part: values[min(len(values) - 1, int(len(values) * part))]
    return f"p50 {at(0.5):.0f} ms, p99 {at(0.99):.0f} ms, max {values[-1]:.0f} ms of {len(values)}" if values else "none"


class Storm(unittest.TestCase):
    maxDiff = 2000

    def subscribe(self, servers, name, receiver):
        service = harness.stubs().notification
        events = [value for value in service.NotificationEvent.values() if value != 0]
        request = service.CreateSubscriptionRequest(name=name, events=events, url=receiver.url)
        stub = harness.stubs().notification_grpc.NotificationServiceStub
        made = servers.call(stub, "CreateSubscription", request)
        return made.subscription.subscription_id, made.secret

    def state(self, servers, subscription):
        service = harness.stubs().notification
        stub = harness.stubs().notification_grpc.NotificationServiceStub
        request = service.GetSubscriptionRequest(subscription_id=subscription)
        return servers.call(stub, "GetSubscription", request).subscription.state

    def verify(self, command, lines):
        done = subprocess.run(
            command, input="".join(lines), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
            cwd=harness.REPO / "tests/webhooks",
        )
        self.assertEqual(done.stdout, f"verified {len(lines)}\n")

    def test_all_that_happened_is_told_in_order_whoever_is_killed(self):
        mongodb = harness.shared_mongodb()
        mongodb.client.drop_database("storm")
        self.addCleanup(mongodb.client.drop_database, "storm")
        servers = Servers("storm")
        self.addCleanup(servers.stop)
        with Receiver() as receiver, Receiver(hangs=True) as hanging:
            stuck, _ = self.subscribe(servers, "hangs", hanging)
            subscription, secret = self.subscribe(servers, "answers", receiver)
            count = max(2, round(RATE / WRITER_RATE))
            programs = [Program(servers, n, TRANSITIONS // count, RATE / count) for n in range(count)]
            began = time.monotonic()
            for program in programs:
                program.thread.start()
            while any(program.thread.is_alive() for program in programs):
                next_kill = began + KILL_SECONDS * (len(servers.kills) + 1)
                for program in programs:
                    program.thread.join(max(0, next_kill - time.monotonic()))
                if time.monotonic() >= next_kill:
                    servers.kill()
            wrote = time.monotonic() - began
            self.assertEqual([program.broken for program in programs if program.broken], [])
            # One more, when there is most to send.
            servers.kill()
            told = {identity: events for program in programs for identity, events in program.told.items()}
            all_of_it = sum(len(events) for events in told.values())
            known, looked_at = set(), 0

            def all_came():
                nonlocal looked_at
                new = receiver.received[looked_at:]
                looked_at += len(new)
                known.update(headers["webhook-id"] for headers, _, _ in new)
                return len(known) >= all_of_it

            harness.wait_until("all is told", all_came, 300)
            # What is still to come after this is one too many.
            harness.wait_until("nothing waits", lambda: self.state(servers, subscription).pending == 0, 60)
            state = self.state(servers, stuck)
            self.assertTrue(hanging.received)
            delivered = [delivery for delivery in self.deliveries(servers, stuck) if delivery.HasField("delivered_at")]
            self.assertEqual(delivered, [], "it has answered nothing")
            self.assertGreater(state.pending, 0)
            received = list(receiver.received)
        # In the order in which each came first.
        seen, came, late = {}, collections.defaultdict(list), []
        for headers, body, at in received:
            event = Webhook(secret).verify(body, headers)
            identity, kind = event["id"], (event["subject"], event["type"])
            self.assertEqual(seen.setdefault(identity, kind), kind)
            if len(seen) > sum(map(len, came.values())):
                came[event["subject"]].append((event["type"], at))
        for identity, events in told.items():
            self.assertEqual([kind for kind, _ in came[identity]], [kind for kind, _ in events], identity)
            late += [(at, max(0, came_at - at) * 1000) for (_, at), (_, came_at) in zip(events, came[identity])]
        self.assertEqual(set(came), set(told))
        lines = [
            json.dumps({"secret": secret, "headers": {name.lower(): value for name, value in headers.items()},
                        "body": body.decode()}) + "\n"
            for headers, body, _ in received
        ]
        self.verify(["node", "verify.js"], lines)
        self.verify(["go", "run", "."], lines)
        calm = [ms for at, ms in late if not any(kill - 1 < at < kill + 5 for kill in servers.kills)]
        print(f"{all_of_it} transitions, {all_of_it / wrote:.0f} a second, {len(servers.kills)} kills")
        print(f"{len(received)} requests, {len(received) - all_of_it} of them once more; {state.pending} wait for who hangs")
        print(f"late by {percentiles([ms for _, ms in late])}; without those near a kill: {percentiles(calm)}")

    def deliveries(self, servers, subscription):
        service = harness.stubs().notification
        request = service.ListDeliveriesRequest(subscription_id=subscription, page_size=1000)
        stub = harness.stubs().notification_grpc.NotificationServiceStub
        return servers.call(stub, "ListDeliveries", request).deliveries


if __name__ == "__main__":
    unittest.main()
