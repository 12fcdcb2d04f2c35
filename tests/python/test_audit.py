"""The audit log, as somebody checks it who has docs/security.md and the database: chains recomputed in Python, what was
changed or taken away found by name, every acknowledged write in it whenever the server is killed, and nothing done that
cannot be recorded."""

import concurrent.futures
import json
import random
import threading
import time
import unittest

import bson
import grpc
import pymongo.errors
from bson import json_util

import harness
import trust
from trust import FIELDS, Caller, Guarded, decoded, own_hash, recomputed, verified

KILLS = 10


def chain_of(guarded, server):
    """The documents of a chain, and their bytes, by number."""
    raws = {bson.decode(raw)["seq"]: raw for raw in guarded.records() if bson.decode(raw)["server"] == server}
    return {seq: raws[seq] for seq in sorted(raws)}


class Chains(unittest.TestCase):
    def begin(self, store):
        """A chain that has ended, and a server that writes another; what each call did."""
        guarded = self.enterContext(Guarded(store, level="writes"))
        server = guarded.serve()
        admin = guarded.admin(server)
        key_id, _ = admin.key("reporter", ["mine"])
        admin.call("ExecutionService/CreateExecution", execution_id="run", app_name="mine", user_id="geheim")
        admin.call("StepService/StartStep", execution_id="run", step_id=1, step_name="work")
        admin.refused("ExecutionService/DeleteExecution", execution_id="run")
        admin.call("AuthService/RevokeKey", key_id=key_id)
        Caller.with_key(server.channel, "swk_nonsense").refused("AuthService/WhoAmI")
        self.assertEqual(server.stop(), 0)
        (first,) = decoded(guarded.records())
        server = guarded.serve()
        guarded.admin(server).call("ExecutionService/DeleteExecution", execution_id="run", force=True)
        guarded.settle()
        (second,) = set(decoded(guarded.records())) - {first}
        return guarded, server, first, second

    def test_a_chain_is_recomputed_from_the_documents_alone(self):
        for store in trust.STORES:
            with self.subTest(store):
                guarded, server, first, second = self.begin(store)
                raws = guarded.records()
                for raw in raws:
                    names = [name for name in bson.decode(raw)]
                    optional = {"outcome", "reason"} - set(names)
                    self.assertEqual(names, [name for name in FIELDS if name not in optional])
                    for secret in (b"geheim", guarded.admin_key[16:].encode()):
                        self.assertNotIn(secret, raw)
                self.assertEqual(recomputed(raws), set())
                self.assertEqual(verified(guarded, server), (set(), 0))
                chains = decoded(raws)
                begun, ended = chains[first][0], chains[first][-1]
                self.assertEqual((begun["event"], ended["event"]), ("server.start", "server.stop"))
                # The next server vouches for the one before.
                (listed,) = chains[second][0]["details"]["ended"]
                self.assertEqual((listed["server"], listed["seq"], listed["hash"]), (first, ended["seq"], ended["hash"]))
                told = {(one["event"], one["phase"], one.get("outcome")) for chain in chains.values() for one in chain}
                for event in ("key.create", "key.revoke", "execution.delete"):
                    self.assertLessEqual({(event, "begin", None), (event, "end", "ok")}, told)
                self.assertIn(("execution.delete", "end", "failed"), told)
                self.assertIn(("credential.refuse", "once", "denied"), told)
                for document in chains[first]:
                    if document["phase"] == "end":
                        begin = chains[first][document["details"]["begin"] - 1]
                        self.assertEqual((begin["phase"], begin["event"]), ("begin", document["event"]))
                # The export has the same records, and is enough for all of that as well.
                exported = guarded.command(server, "audit", "export").stdout.splitlines()
                options = json_util.CANONICAL_JSON_OPTIONS.with_options(tz_aware=False, tzinfo=None)
                again = [json_util.loads(line, json_options=options) for line in exported]
                by_id = {one["_id"]: one for one in map(bson.decode, guarded.records())}
                self.assertEqual({one["_id"]: one for one in again}, by_id)
                self.assertEqual(recomputed(bson.encode(one) for one in again), set())

    def same(self, guarded, server, expected, heads=None):
        """`stepwell audit verify` and what is computed here both name exactly this."""
        kept = ()
        if heads:
            with open(heads) as lines:
                kept = [(head["server"], head["seq"], bytes.fromhex(head["hash"])) for head in map(json.loads, lines)]
        self.assertEqual(verified(guarded, server, heads), (expected, 1 if expected else 0))
        self.assertEqual(recomputed(guarded.records(), kept), expected)

    def test_what_was_changed_or_taken_is_named(self):
        for store in trust.STORES:
            with self.subTest(store):
                guarded, server, first, second = self.begin(store)
                chain = chain_of(guarded, first)
                last = max(chain)
                self.assertGreater(last, 8)
                heads = guarded.papers.write(
                    "heads", guarded.command(server, "audit", "heads", "--output", "json").stdout
                )
                self.same(guarded, server, set(), heads)
                # One byte: the answer to "from which address" becomes another.
                changed = chain[3].replace(b"127.0.0.1", b"127.0.0.2")
                self.assertEqual(sum(a != b for a, b in zip(changed, chain[3])), 1)
                guarded.put(first, 3, changed)
                self.same(guarded, server, {("BREAK", first, 3)})
                # The same with a hash that fits: it no longer fits what follows.
                document = bson.decode(changed)
                document["hash"] = own_hash(document)
                guarded.put(first, 3, bson.encode(document))
                self.same(guarded, server, {("BREAK", first, 4)})
                guarded.put(first, 3, chain[3])
                # One record, several, and the first ones.
                for taken in ([4], [3, 4, 5], [1], [1, 2]):
                    for seq in taken:
                        guarded.take(first, seq)
                    self.same(guarded, server, {("GAP", first, taken[0])})
                    for seq in taken:
                        guarded.put(first, seq, chain[seq])
                # The tail of a chain that a later one vouches for.
                guarded.take(first, last)
                self.same(guarded, server, {("LOST_TAIL", first, last)})
                guarded.take(first, last - 1)
                self.same(guarded, server, {("LOST_TAIL", first, last - 1)})
                # All of it.
                for seq in range(1, last - 1):
                    guarded.take(first, seq)
                self.same(guarded, server, {("MISSING_CHAIN", first, last)})
                for seq, raw in chain.items():
                    guarded.put(first, seq, raw)
                self.same(guarded, server, set(), heads)
                # The tail of the newest chain, after its server was killed: only a list that was kept tells that.
                server.child.kill()
                server.child.wait()
                own = chain_of(guarded, second)
                guarded.take(second, max(own))
                server = guarded.serve()
                self.same(guarded, server, set())
                self.same(guarded, server, {("LOST_TAIL", second, max(own))}, heads)

    def test_every_changed_byte_is_named(self):
        """Each byte of a record in turn, as far as the database takes what comes out."""
        for store in trust.STORES:
            with self.subTest(store):
                guarded, server, first, _ = self.begin(store)
                admin = guarded.admin(server)
                raw = chain_of(guarded, first)[4]
                was = bson.decode(raw)
                tried = 0
                for place in range(len(raw)):
                    forged = bytearray(raw)
                    forged[place] ^= 0x01
                    try:
                        # What is no BSON does not come into MongoDB. What would stand elsewhere is for the other test.
                        whole = bson.decode(bytes(forged))
                        if store == "mongodb" and (whole.get("server"), whole.get("seq")) != (first, 4):
                            continue
                    except (bson.InvalidBSON, UnicodeDecodeError, ValueError, OverflowError):
                        whole = None
                        if store == "mongodb":
                            continue
                    try:
                        self.place(guarded, store, first, bytes(forged))
                    except pymongo.errors.WriteError:
                        continue
                    told = admin.call("AuditService/VerifyAudit")
                    flaws = {(one.finding.flaw, one.finding.server, one.finding.seq) for one in told if one.HasField("finding")}
                    self.assertTrue(flaws & {(kind, first, seq) for kind in (1, 2) for seq in (4, 5)}, f"byte {place}")
                    # What comes after it is named too only where the record cannot be read, or has another number or hash.
                    plain = whole is not None and [*map(type, whole.values())] == [*map(type, was.values())]
                    plain = plain and list(whole) == list(was) and (whole["seq"], whole["hash"]) == (4, was["hash"])
                    self.assertTrue(flaws == {(1, first, 4)} or not plain, f"byte {place}: {flaws}")
                    tried += 1
                self.place(guarded, store, first, raw)
                self.assertEqual(verified(guarded, server), (set(), 0))
                self.assertGreater(tried, 100)
                print(f"{store}: {tried} of {len(raw)} bytes changed, each named", flush=True)

    def place(self, guarded, store, server, raw):
        if store == "mongodb":
            guarded.put(server, 4, raw)
            return
        with guarded.sqlite() as connection, connection:
            sql = "UPDATE audit_log SET document = ? WHERE server = ? AND seq = 4"
            self.assertEqual(connection.execute(sql, (raw, server)).rowcount, 1)


class Writer(threading.Thread):
    """Writes until the server is gone: executions and steps by calls and by a stream, and deletes. Notes what was
    acknowledged: method, execution, step."""

    def __init__(self, admin, name, acknowledged, more):
        super().__init__(daemon=True)
        self.admin, self.prefix, self.acknowledged, self.more = admin, name, acknowledged, more
        self.start()

    def run(self):
        self.ended = None
        streams = self.prefix.startswith("s")
        try:
            (self.stream if streams else self.calls)()
        except grpc.RpcError as error:
            # Killed: nothing that came after counts.
            self.ended = error.code()

    def done(self, *what):
        with self.more:
            self.acknowledged.append(what)
            self.more.notify_all()

    def calls(self):
        number = 0
        while True:
            number += 1
            id = f"{self.prefix}-{number}"
            self.admin.call("ExecutionService/CreateExecution", execution_id=id, app_name="mine")
            self.done("ExecutionService/CreateExecution", id, None)
            for step in (1, 2):
                self.admin.call("StepService/StartStep", execution_id=id, step_id=step, step_name="work")
                self.done("StepService/StartStep", id, step)
            if number % 5 == 0:
                self.admin.call("ExecutionService/DeleteExecution", execution_id=id, force=True)
                self.done("ExecutionService/DeleteExecution", id, None)

    def stream(self):
        pb = harness.stubs()
        window = threading.Semaphore(32)
        sent = {}

        def requests():
            sequence = 0
            while True:
                window.acquire()
                sequence += 1
                id = f"{self.prefix}-{(sequence + 3) // 4}"
                request = pb.ingest.IngestRequest(sequence=sequence)
                if sequence % 4 == 1:
                    request.create_execution.execution_id, request.create_execution.app_name = id, "mine"
                    sent[sequence] = ("IngestService/Ingest/create_execution", id, None)
                else:
                    step = sequence % 4 or 4
                    request.start_step.execution_id, request.start_step.step_id = id, step
                    request.start_step.step_name = "work"
                    sent[sequence] = ("IngestService/Ingest/start_step", id, step)
                yield request

        for answer in self.admin.open("IngestService/Ingest", requests()):
            window.release()
            assert not answer.HasField("error"), answer
            self.done(*sent.pop(answer.sequence))


class Kills(unittest.TestCase):
    def test_every_acknowledged_write_is_recorded_however_the_server_ends(self):
        for store in trust.STORES:
            with self.subTest(store):
                self.check(store)

    def check(self, store):
        guarded = self.enterContext(Guarded(store, level="writes"))
        seed = random.SystemRandom().randrange(2**32)
        chance = random.Random(seed)
        acknowledged, more = [], threading.Condition()
        for kill in range(KILLS):
            server = guarded.serve()
            admin = guarded.admin(server)
            writers = [Writer(admin, f"{kind}{kill}", acknowledged, more) for kind in ("s", "t", "u", "v")]
            with more:
                enough = len(acknowledged) + chance.randrange(1, 250)
                moved = more.wait_for(lambda: len(acknowledged) >= enough, 60)
            self.assertTrue(moved, f"seed {seed}, server {kill}: {[writer.ended for writer in writers]}\n{server.log()}")
            server.child.kill()
            server.child.wait()
            for writer in writers:
                writer.join(60)
                self.assertFalse(writer.is_alive())
                self.assertIsNotNone(writer.ended, "it ended by itself")
        server = guarded.serve()
        raws = guarded.records()
        # The chains hold, although none but the last has an end.
        self.assertEqual(recomputed(raws), set())
        self.assertEqual(verified(guarded, server), (set(), 0))
        chains = decoded(raws)
        self.assertEqual(len(chains), KILLS + 1)
        # What was asked for, and how it ended where that was recorded.
        begun, ended = set(), {}
        for chain in chains.values():
            for record in chain:
                wrote = record["details"].get("writes")
                if record["event"] == "records.write":
                    for write in wrote:
                        what = write["rpc"].removeprefix("stepwell.v1."), write["execution_id"], write.get("step_id")
                        if record["phase"] == "begin":
                            self.assertNotIn("code", write)
                        else:
                            ended.setdefault(what, set()).add(write["code"])
                        begun.add(what)
                elif record["event"] == "execution.delete":
                    what = "ExecutionService/DeleteExecution", record["target"]["execution_id"], None
                    begun.add(what) if record["phase"] == "begin" else ended.setdefault(what, set()).add(record["code"])
        missing = [what for what in acknowledged if what not in begun]
        self.assertEqual(missing, [], f"seed {seed}: {len(missing)} of {len(acknowledged)} were acknowledged unrecorded")
        wrong = [what for what in acknowledged if ended.get(what, {"OK"}) != {"OK"}]
        self.assertEqual(wrong, [], f"seed {seed}")
        # Nothing is stored that is in no record; and on SQLite, where both are one transaction, the other way round too.
        stored = self.stored(guarded)
        known = {(id, step) for _, id, step in begun}
        self.assertEqual(stored - known, set(), f"seed {seed}: stored unrecorded")
        if store == "sqlite":
            deleted = {id for rpc, id, _ in begun if rpc.endswith("DeleteExecution")}
            made = {(id, step) for (rpc, id, step), codes in ended.items() if codes == {"OK"} and id not in deleted}
            self.assertEqual(made - stored, set(), f"seed {seed}: recorded and not stored")
        print(
            f"{store}: {KILLS} kills (seed {seed}), {len(acknowledged)} writes acknowledged, {len(begun)} recorded, "
            f"{len(raws)} records",
            flush=True,
        )

    def stored(self, guarded):
        if guarded.uri:
            both = (guarded.database.executions, guarded.database.execution_steps)
            return {(one["execution_id"], one.get("step_id")) for collection in both for one in collection.find()}
        with guarded.sqlite() as connection:
            executions = connection.execute("SELECT execution_id, NULL FROM executions WHERE deleted_at IS NULL").fetchall()
            steps = "SELECT execution_id, step_id FROM steps JOIN executions ON executions.id = steps.execution WHERE deleted_at IS NULL"
            return {*executions, *connection.execute(steps)}


# Kept for its own sake by whoever serves: no record of anybody.
OWN = (
    "audit_log", "stepwell_meta", "meta", "stepwell_nudges", "changes", "keys", "stepwell_keys", "stepwell_search_texts",
    "search_texts", "stepwell_rollup_counted", "rollup_counted", "stepwell_rollups", "rollups", "stepwell_rollup_failures",
    "rollup_failures", "stepwell_rollup_failure_counts", "rollup_failure_counts",
)  # fmt: skip


class Closed(unittest.TestCase):
    """The log takes nothing."""

    def fill(self, admin, id):
        """A run with everything that one can have. The id of its artifact."""
        pb = harness.stubs()
        admin.call("ExecutionService/CreateExecution", execution_id=id, app_name="mine", metadata=trust.metadata(a=1))
        for step in (1, 2):
            admin.call("StepService/StartStep", execution_id=id, step_id=step, step_name="work")
        point = {"metrics": {"m": 1.0}, "timestamp": {"seconds": int(time.time())}}
        admin.call("MetricService/RecordMetrics", execution_id=id, points=[point])
        upload = pb.artifact.UploadArtifactRequest
        description = {"execution_id": id, "artifact_type": "log", "artifact_name": "log"}
        parts = [upload(description=description), upload(chunk=f"the words of {id}".encode() * 1000)]
        return admin.call("ArtifactService/UploadArtifact", iter(parts)).artifact.artifact_id

    def left(self, everything, id):
        """In which tables or collections something of a run is left."""
        return {name for name, records in everything.items() if any(id in str(record) for record in records)}

    def test_nothing_is_deleted_and_nothing_half_done(self):
        for store in trust.STORES:
            with self.subTest(store):
                self.check(store)

    def check(self, store):
        guarded = self.enterContext(Guarded(store))
        server = guarded.serve()
        admin = guarded.admin(server)
        artifacts = {f"run-{number}": self.fill(admin, f"run-{number}") for number in range(4)}
        admin.call("ConfigurationService/PublishConfiguration", configuration={"app_name": "mine", "version": "1"})
        guarded.settle()
        before, log = guarded.everything(but=OWN), len(guarded.records())
        guarded.refuse_records(True)
        no = ("UNAVAILABLE", "AUDIT_UNAVAILABLE")
        for id, artifact in artifacts.items():
            self.assertEqual(admin.refused("ExecutionService/DeleteExecution", execution_id=id, force=True), no)
            self.assertEqual(admin.refused("ArtifactService/DeleteArtifact", artifact_id=artifact), no)
        self.assertEqual(admin.refused("AdminService/RunRetention"), no)
        pb = harness.stubs()
        deletes = [
            pb.ingest.IngestRequest(sequence=n, delete_execution={"execution_id": id, "force": True})
            for n, id in enumerate(artifacts, start=1)
        ]
        for answer in admin.call("IngestService/Ingest", iter(deletes)):
            self.assertEqual(answer.error.code, grpc.StatusCode.UNAVAILABLE.value[0], answer)
        self.assertEqual(guarded.everything(but=OWN), before)
        self.assertEqual(len(guarded.records()), log)
        for id, artifact in artifacts.items():
            whole = admin.call("ExecutionService/GetExecution", execution_id=id, view=2)
            self.assertEqual((len(whole.steps), len(whole.artifacts)), (2, 1))
            pieces = admin.call("ArtifactService/DownloadArtifact", artifact_id=artifact)
            self.assertEqual(b"".join(piece.chunk for piece in pieces), f"the words of {id}".encode() * 1000)
        guarded.refuse_records(False)
        for id in artifacts:
            admin.call("ExecutionService/DeleteExecution", execution_id=id, force=True)
            everything = guarded.everything(but=OWN)
            self.assertEqual((self.left(everything, id), everything["orphans"]), (set(), []), id)
        self.assertEqual(server.stop(), 0)
        self.assertEqual(recomputed(guarded.records()), set())

    def test_each_delete_is_whole_or_not_at_all_while_the_log_opens_and_closes(self):
        for store in trust.STORES:
            with self.subTest(store):
                self.flap(store)

    def flap(self, store):
        guarded = self.enterContext(Guarded(store))
        server = guarded.serve()
        admin = guarded.admin(server)
        runs = [f"run-{number:03}" for number in range(80)]
        for id in runs:
            self.fill(admin, id)
        full = self.left(guarded.everything(but=OWN), runs[0])
        self.assertGreaterEqual(len(full), 3, full)
        answers, lock = {}, threading.Lock()

        def delete(id):
            answer = admin.refused("ExecutionService/DeleteExecution", execution_id=id, force=True)
            with lock:
                answers[id] = answer
                # Every tenth answer closes the log, or opens it again.
                if len(answers) % 10 == 0:
                    guarded.refuse_records(len(answers) // 10 % 2 == 1)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(delete, runs))
        guarded.refuse_records(False)
        # What was begun last is recorded before it ends.
        self.assertEqual(server.stop(), 0)
        raws = guarded.records()
        self.assertEqual(recomputed(raws), set())
        begun = {
            record["target"]["execution_id"]
            for record in map(bson.decode, raws)
            if (record["event"], record["phase"]) == ("execution.delete", "begin")
        }
        done = {id for id, answer in answers.items() if answer is None}
        self.assertEqual(set(answers.values()), {None, ("UNAVAILABLE", "AUDIT_UNAVAILABLE")})
        self.assertGreater(len(done), 10)
        self.assertLessEqual(done, begun)
        everything = guarded.everything(but=OWN)
        self.assertEqual(everything["orphans"], [])
        self.assertEqual(len(everything["files"]), len(runs) - len(done)) if store == "sqlite" else None
        for id in runs:
            self.assertEqual(self.left(everything, id), set() if id in done else full, id)
        print(f"{store}: {len(done)} of {len(runs)} deletes done, the others not at all", flush=True)


if __name__ == "__main__":
    unittest.main()
