"""Credentials at a server as it is shipped: how soon one that is withdrawn is over, everything that is read again changed
under load, and attacks."""

import os
import queue
import signal
import socket
import ssl
import threading
import time
import unittest

# Connections that are refused are part of it.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

import harness
import trust
from trust import Authority, Caller, Guarded, Provider, SigningKey, refusal

CALLS_END_WITHIN = 5
STREAMS_END_WITHIN = 10
READ_AGAIN_WITHIN = 10


class Stream(threading.Thread):
    """A stream that stays open: when it ended, and how."""

    def __init__(self, name, caller, method, request=None, /, **fields):
        super().__init__(daemon=True)
        self.name, self.ended, self.code = name, None, None
        self.seen = []
        self.more = queue.Queue()
        if request is not None:
            for message in request:
                self.more.put(message)
            # The request goes on until the test ends.
            request = iter(self.more.get, None)
        self.call = caller.open(method, request, 300, **fields)
        self.start()

    def run(self):
        try:
            for message in self.call:
                self.seen.append(message)
            self.code = "OK", ""
        except grpc.RpcError as error:
            self.code = refusal(error)
        self.ended = time.monotonic()

    def stop(self):
        self.more.put(None)
        self.call.cancel()
        self.join(30)


class Upload(Stream):
    """One answer, once all is there."""

    def __init__(self, name, caller, method, request, /):
        path, _, asked, answered = trust.method(method)
        begin = caller.channel.stream_unary(
            path, request_serializer=asked.SerializeToString, response_deserializer=answered.FromString
        )
        more = queue.Queue()
        for message in request:
            more.put(message)
        future = begin.future(iter(more.get, None), metadata=caller.metadata, timeout=300)
        threading.Thread.__init__(self, daemon=True)
        self.name, self.ended, self.code, self.more, self.call = name, None, None, more, future
        self.start()

    def run(self):
        try:
            self.call.result()
            self.code = "OK", ""
        except grpc.RpcError as error:
            self.code = refusal(error)
        except grpc.FutureCancelledError:
            self.code = "CANCELLED", ""
        self.ended = time.monotonic()


class Calls(threading.Thread):
    """Calls again and again until one is refused."""

    def __init__(self, caller):
        super().__init__(daemon=True)
        self.caller, self.last_good, self.refused = caller, None, None
        self.stopped = threading.Event()
        self.start()

    def run(self):
        while not self.stopped.is_set():
            began = time.monotonic()
            try:
                self.caller.who()
                self.last_good = began
            except grpc.RpcError as error:
                self.refused = refusal(error)
                return


class Withdrawn(unittest.TestCase):
    """A credential that is withdrawn is over for calls and for streams of every kind, at every server of the database."""

    def streams(self, server, caller, number):
        pb = harness.stubs()
        description = {"execution_id": "run", "artifact_type": "log", "artifact_name": f"log-{number}"}
        upload = pb.artifact.UploadArtifactRequest
        sign_of_life = pb.ingest.IngestRequest(sequence=1, heartbeat={"execution_id": "run"})
        point = {"metrics": {"m": 1.0}, "timestamp": {"seconds": int(time.time())}}
        points = pb.metric.StreamMetricsRequest(execution_id="run", points=[point])
        return [
            Stream("WatchExecutions", caller, "ExecutionService/WatchExecutions"),
            Stream("WatchExecution", caller, "ExecutionService/WatchExecution", execution_id="run", follow=True),
            Stream("Ingest", caller, "IngestService/Ingest", [sign_of_life]),
            Upload("StreamMetrics", caller, "MetricService/StreamMetrics", [points]),
            Upload(
                "UploadArtifact",
                caller,
                "ArtifactService/UploadArtifact",
                [upload(description=description), upload(chunk=b"the beginning")],
            ),
        ]

    def check(self, store, make, withdraw, reason, calls_within, servers=None):
        with Guarded(store) as guarded:
            servers = [guarded.serve() for _ in range(servers or (2 if store == "mongodb" else 1))]
            admin = guarded.admin(servers[0])
            admin.call("ExecutionService/CreateExecution", execution_id="run", app_name="mine")
            key = make(guarded, admin)
            callers = [Caller.with_key(server.channel, key) for server in servers]
            for caller in callers:
                harness.wait_until("it is known everywhere", lambda: caller.refused("AuthService/WhoAmI") is None)
            _, other = admin.key("viewer", ["mine"])
            others = [Caller.with_key(server.channel, other) for server in servers]
            for caller in others:
                harness.wait_until("it is known everywhere", lambda: caller.refused("AuthService/WhoAmI") is None)
            streams = [
                stream
                for number, (server, caller) in enumerate(zip(servers, callers))
                for stream in self.streams(server, caller, number)
            ]
            going_on = [Stream("another key", caller, "ExecutionService/WatchExecutions") for caller in others]
            calls = [Calls(caller) for caller in callers]
            for stream in streams[:1] + going_on:
                harness.wait_until("a watch has begun", lambda: len(stream.seen) > 1)
            harness.wait_until("all call", lambda: all(one.last_good for one in calls))
            self.assertEqual([stream.code for stream in streams], [None] * len(streams))
            began = withdraw(guarded, servers, admin, key) or time.monotonic()
            for one in calls:
                one.join(30)
                # The latter where it was asked too often whether the key is known already.
                self.assertIn(one.refused, [("UNAUTHENTICATED", reason), ("RESOURCE_EXHAUSTED", "RATE_LIMITED")])
                self.assertLess(one.last_good - began, calls_within)
            for stream in streams:
                stream.join(30)
                self.assertIsNotNone(stream.ended, f"{stream.name} goes on")
                self.assertEqual(stream.code, ("UNAUTHENTICATED", reason), stream.name)
                self.assertLess(stream.ended - began, max(STREAMS_END_WITHIN, calls_within), stream.name)
            # Everybody else goes on.
            guarded.admin(servers[0]).call("ExecutionService/CreateExecution", execution_id="later", app_name="mine")
            for stream in going_on:
                harness.wait_until(
                    "it is told", lambda: any(one.execution.execution.execution_id == "later" for one in stream.seen)
                )
                self.assertIsNone(stream.code)
            for stream in streams + going_on:
                stream.stop()
            took = max(one.last_good for one in calls) - began, max(stream.ended for stream in streams) - began
            print(f"{store}, {len(servers)} servers: calls {took[0]:.2f} s, streams {took[1]:.2f} s", flush=True)

    def test_a_revoked_key(self):
        def revoke(guarded, servers, admin, key):
            began = time.monotonic()
            admin.call("AuthService/RevokeKey", key_id=key[4:16])
            return began

        for store in trust.STORES:
            with self.subTest(store):
                make = lambda guarded, admin: admin.key("editor", ["mine"])[1]
                self.check(store, make, revoke, "CREDENTIAL_INVALID", CALLS_END_WITHIN)

    def test_a_key_that_expires(self):
        ends = {}

        def make(guarded, admin):
            # Time for all streams to begin, also on a machine that does much else.
            ends["at"] = int(time.time()) + 6
            ends["began"] = time.monotonic() + ends["at"] - time.time()
            return admin.key("editor", ["mine"], expires_at={"seconds": ends["at"]})[1]

        for store in trust.STORES:
            with self.subTest(store):
                wait = lambda *_: ends["began"]
                self.check(store, make, wait, "CREDENTIAL_EXPIRED", CALLS_END_WITHIN)

    def removal(self, hang_up):
        """An admin key is taken out of the file of the servers."""

        def make(guarded, admin):
            second = harness.stepwell("keys", "generate").stdout.strip()
            guarded.papers.write("admin-keys", f"{guarded.admin_key}\n{second}\n")
            return second

        def remove(guarded, servers, *_):
            began = time.monotonic()
            guarded.papers.write("admin-keys", guarded.admin_key)
            if hang_up:
                for server in servers:
                    os.kill(server.child.pid, signal.SIGHUP)
            return began

        return make, remove

    def test_a_line_of_the_file_of_admin_keys(self):
        for store in trust.STORES:
            with self.subTest(store):
                self.check(store, *self.removal(False), "CREDENTIAL_INVALID", READ_AGAIN_WITHIN)

    def test_a_line_of_the_file_of_admin_keys_and_a_hangup(self):
        self.check("mongodb", *self.removal(True), "CREDENTIAL_INVALID", CALLS_END_WITHIN)


LOCAL = [("grpc.use_local_subchannel_pool", 1)]
HERE = "DNS:localhost,IP:127.0.0.1"
RULES = """
[auth.oidc]
issuer = "{issuer}"
audience = "stepwell"
{keys}

[[auth.oidc.rules]]
claim = "groups"
value = "people"
role = "viewer"
apps = ["*"]

[[auth.certificates]]
san = "app.example"
role = "viewer"
apps = ["*"]
"""


class Load(threading.Thread):
    """Calls one after another, each with what `make` gives; ends with the first that fails."""

    def __init__(self, name, make, call):
        super().__init__(daemon=True)
        self.name, self.make, self.one = name, make, call
        self.calls, self.failed = 0, None
        self.stopped = threading.Event()
        self.start()

    def run(self):
        while not self.stopped.is_set():
            try:
                self.one(*self.make())
                self.calls += 1
            except Exception as error:
                self.failed = error
                return
            # Calls come all the time; this machine does other things as well.
            self.stopped.wait(0.02)


class Rotated(unittest.TestCase):
    """The certificate of the server, the authority of the clients, the admin key and the keys of the identity provider are
    changed while clients call all the time, over lasting and over new connections: no call fails, and no watch ends."""

    def shown(self, server):
        """The certificate that a server shows to who connects now."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=10) as plain, context.wrap_socket(plain) as secure:
            return ssl.DER_cert_to_PEM_cert(secure.getpeercert(binary_form=True)).strip()

    def test_everything_under_load(self):
        """By themselves, and at once where somebody says that they are whole."""
        for store, keys, is_told in (("sqlite", "file", False), ("mongodb", "url", True)):
            with self.subTest(store, keys=keys), Guarded(store) as guarded, Provider() as provider:
                self.check(guarded, provider, keys, is_told)

    def check(self, guarded, provider, keys, is_told):
        papers = guarded.papers
        servers, others = Authority(papers, "servers"), Authority(papers, "others")
        clients, new_clients = Authority(papers, "clients"), Authority(papers, "new-clients")
        old, new = SigningKey(papers, "old"), SigningKey(papers, "new")
        by_file = "" if keys == "url" else f'jwks_file = "{papers.path("keys.json")}"'
        papers.write("stepwell.toml", RULES.format(issuer=provider.url, keys=by_file))

        def publish(*keys):
            provider.publish(*keys)
            papers.write("keys.json", trust.key_set(*keys))

        def identify(issued):
            papers.write("server.key", issued[1])
            papers.write("server.pem", issued[0])

        publish(old)
        identify(servers.issue(HERE))
        papers.write("clients-in-force.pem", clients.pem())
        flags = ["--config", papers.path("stepwell.toml"), "--tls-mode", "on"]
        flags += ["--tls-cert-file", papers.path("server.pem"), "--tls-key-file", papers.path("server.key")]
        flags += ["--tls-client-ca-file", papers.path("clients-in-force.pem")]
        both = (servers.pem() + others.pem()).encode()
        server = guarded.serve(*flags, credentials=grpc.ssl_channel_credentials(servers.pem().encode()))

        def connect(certificate=None):
            shown = [part.encode() for part in reversed(certificate)] if certificate else []
            return grpc.secure_channel(server.address, grpc.ssl_channel_credentials(both, *shown), options=LOCAL)

        # What clients hold now; whoever changes it waits until all have called with the next one.
        held = {
            "admin": guarded.admin_key,
            "token": old.token(provider.claims(groups=["people"])),
            "certificate": clients.issue("DNS:app.example", "clientAuth"),
        }
        first = connect()
        admin = Caller.with_key(first, guarded.admin_key)
        _, watching = admin.key("viewer", ["*"])
        watch = Stream("the watch", Caller.with_key(connect(), watching), "ExecutionService/WatchExecutions")
        harness.wait_until("the watch has begun", lambda: len(watch.seen) > 0)
        created = []

        def create(channel, credential):
            id = f"run-{len(created)}"
            caller = Caller(channel, *credential)
            caller.call("ExecutionService/CreateExecution", execution_id=id, app_name="mine")
            created.append(id)

        def who(channel, credential):
            Caller(channel, *credential).who()

        def who_anew(channel, credential):
            with channel:
                Caller(channel, *credential).who()

        lasting = [connect() for _ in range(2)]
        with_certificate = connect(held["certificate"])
        bearer = lambda what: [f"Bearer {held[what]}"]
        loads = [
            Load("admin key, one connection", lambda: (lasting[0], bearer("admin")), create),
            Load("token, one connection", lambda: (lasting[1], bearer("token")), who),
            Load("certificate, one connection", lambda: (with_certificate, []), who),
            Load("admin key, new connections", lambda: (connect(), bearer("admin")), who_anew),
            Load("token, new connections", lambda: (connect(), bearer("token")), who_anew),
            Load("certificate, new connections", lambda: (connect(held["certificate"]), []), who_anew),
        ]

        def check_all():
            for load in loads:
                self.assertIsNone(load.failed, f"{load.name}: {load.failed}")
            self.assertIsNone(watch.code)

        def all_have_called():
            before = [load.calls for load in loads]
            # The call that was under way may have begun with what was held before.
            moved = lambda: check_all() or all(load.calls >= was + 2 for load, was in zip(loads, before))
            harness.wait_until("all have called", moved)

        took = {}

        def in_force(what, check):
            began = time.monotonic()
            if is_told:
                os.kill(server.child.pid, signal.SIGHUP)
            harness.wait_until(what, lambda: check_all() or check(), READ_AGAIN_WITHIN)
            took[what] = time.monotonic() - began

        def accepted(channel, *credential):
            with channel:
                try:
                    return bool(Caller(channel, *credential).who())
                except grpc.RpcError:
                    return False

        all_have_called()
        # The certificate of the server: by the same authority, and by another.
        for authority in (servers, others):
            issued = authority.issue(HERE)
            identify(issued)
            in_force(f"a certificate of {authority.name}", lambda: self.shown(server) == issued[0].strip())
            all_have_called()
        # The authority of the clients: both, then the new one alone.
        before, after = held["certificate"], new_clients.issue("DNS:app.example", "clientAuth")
        papers.write("clients-in-force.pem", clients.pem() + new_clients.pem())
        in_force("a new authority of clients", lambda: accepted(connect(after)))
        held["certificate"] = after
        all_have_called()
        papers.write("clients-in-force.pem", new_clients.pem())
        in_force("the old authority is gone", lambda: not accepted(connect(before)))
        all_have_called()
        # The admin key: two lines, then the new one alone.
        before, after = guarded.admin_key, harness.stepwell("keys", "generate").stdout.strip()
        papers.write("admin-keys", f"{before}\n{after}\n")
        in_force("a new admin key", lambda: accepted(connect(), f"Bearer {after}"))
        held["admin"] = after
        all_have_called()
        papers.write("admin-keys", after)
        in_force("the old admin key is gone", lambda: not accepted(connect(), f"Bearer {before}"))
        all_have_called()
        # The keys of the provider: both, then the new one alone.
        before, after = held["token"], new.token(provider.claims(groups=["people"]))
        publish(old, new)
        if keys == "url":
            # Nobody says a word: the call that brings it waits for the keys.
            self.assertTrue(accepted(connect(), f"Bearer {after}"))
        in_force("a new key of the provider", lambda: accepted(connect(), f"Bearer {after}"))
        held["token"] = after
        all_have_called()
        publish(new)
        in_force("the old key of the provider is gone", lambda: not accepted(connect(), f"Bearer {before}"))
        all_have_called()

        for load in loads:
            load.stopped.set()
        for load in loads:
            load.join(60)
        check_all()
        ids = lambda: {one.execution.execution.execution_id for one in watch.seen if one.HasField("execution")}
        harness.wait_until("the watch has told all", lambda: len(ids()) >= len(created))
        self.assertEqual(ids(), set(created))
        watch.stop()
        calls = {load.name: load.calls for load in loads}
        self.assertGreaterEqual(min(calls.values()), 16, calls)
        shown = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in took.items())
        print(f"{guarded.store}: {sum(calls.values())} calls, none failed; {shown}", flush=True)


if __name__ == "__main__":
    unittest.main()
