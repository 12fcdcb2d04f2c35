"""What the tests of doors and of the audit log need: servers that ask everybody who they are, callers with any
credential, certificates and tokens made with openssl, and the audit log as docs/security.md describes it, read from the
database and recomputed here."""

import base64
import contextlib
import functools
import hashlib
import hmac
import http.server
import json
import os
import pathlib
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time

import bson
import grpc
from bson import json_util
from google.protobuf import message_factory
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import harness

STORES = ("sqlite", "mongodb")


# --- callers ----------------------------------------------------------------------------------------------------------


@functools.cache
def method(name):
    """Path, kind and messages of a method, by `Service/Method`."""
    service, method = name.split("/")
    stem = service.removesuffix("Service").lower()
    found = getattr(harness.stubs(), stem).DESCRIPTOR.services_by_name[service].methods_by_name[method]
    kind = ("stream" if found.client_streaming else "unary") + "_" + ("stream" if found.server_streaming else "unary")
    messages = [message_factory.GetMessageClass(kind) for kind in (found.input_type, found.output_type)]
    return f"/stepwell.v1.{name}", kind, *messages


class Caller:
    """A connection, and what is sent as `authorization`, each in a header of its own."""

    def __init__(self, channel, *credentials):
        self.channel = channel
        self.metadata = [("authorization", credential) for credential in credentials]

    @classmethod
    def with_key(cls, channel, key):
        return cls(channel, f"Bearer {key}")

    def at(self, channel):
        """The same caller over another connection."""
        return Caller(channel, *(value for _, value in self.metadata))

    def open(self, name, request=None, timeout=60, /, **fields):
        """Begins a call of any kind: with a message, with its fields, or with an iterator of messages."""
        path, kind, asked, answered = method(name)
        begin = getattr(self.channel, kind)(
            path, request_serializer=asked.SerializeToString, response_deserializer=answered.FromString
        )
        message = asked(**fields) if request is None else request
        if kind == "unary_unary":
            return begin.future(message, metadata=self.metadata, timeout=timeout)
        return begin(message, metadata=self.metadata, timeout=timeout)

    def call(self, name, request=None, timeout=60, /, **fields):
        """The answer to a call: a message, or a list of them."""
        answer = self.open(name, request, timeout, **fields)
        if method(name)[1] == "unary_unary":
            return answer.result()
        return answer if method(name)[1] == "stream_unary" else list(answer)

    def refused(self, name, request=None, /, **fields):
        """Code and reason of a refusal; None if it was done."""
        try:
            self.call(name, request, 60, **fields)
        except grpc.RpcError as error:
            return refusal(error)
        return None

    def who(self):
        return self.call("AuthService/WhoAmI")

    def key(self, role, apps, **fields):
        """A new key: its id, and in clear."""
        grants = [{"role": role, "apps": list(apps)}]
        made = self.call("AuthService/CreateKey", name=f"{role} of {' and '.join(apps)}", grants=grants, **fields)
        return made.key.key_id, made.secret

    def caller(self, role, apps, **fields):
        """Another caller over the same connection, with a new key."""
        return Caller.with_key(self.channel, self.key(role, apps, **fields)[1])


def detail(error, kind):
    """A detail of a refusal by its type."""
    status = rpc_status.from_call(error)
    for packed in status.details if status else ():
        found = getattr(error_details_pb2, kind)()
        if packed.Unpack(found):
            return found
    return None


def refusal(error):
    info = detail(error, "ErrorInfo")
    return error.code().name, info.reason if info else ""


def metadata(**values):
    from google.protobuf import struct_pb2

    struct = struct_pb2.Struct()
    struct.update(values)
    return struct


# --- servers ----------------------------------------------------------------------------------------------------------


class Papers:
    """A folder of files that servers read."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="stepwell-papers-"))

    def path(self, name):
        return str(self.folder / name)

    def write(self, name, text):
        """Puts a file there as a whole, in place of what was there."""
        new = self.folder / f".{name}"
        new.write_text(text)
        os.replace(new, self.folder / name)
        return self.path(name)

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)


class Guarded:
    """A database, and servers on it that ask everybody who they are, all with the same admin."""

    def __init__(self, store, level="security"):
        self.store, self.level = store, level
        self.papers = Papers()
        self.admin_key = harness.stepwell("keys", "generate").stdout.strip()
        self.papers.write("admin-keys", self.admin_key)
        self.data = tempfile.mkdtemp(prefix="stepwell-trust-")
        self.name = f"trust_{os.getpid()}_{time.time_ns()}"
        self.uri = harness.shared_mongodb().uri if store == "mongodb" else None
        self.servers = []

    def serve(self, *args, credentials=None, level=None):
        on_mongodb = {"mongodb_uri": self.uri, "database": self.name} if self.uri else {}
        flags = ("--auth-mode", "required", "--auth-admin-key-file", self.papers.path("admin-keys"))
        flags += ("--audit-level", level or self.level, *args)
        chains = self.chains() if self.servers else 0
        server = harness.Server(**on_mongodb, args=flags, data=self.data, credentials=credentials)
        self.servers.append(server)
        # Until its chain has begun, what has to be recorded is refused as AUDIT_UNAVAILABLE, to be sent again.
        harness.wait_until("the start is recorded", lambda: self.chains() > chains)
        return server

    def chains(self):
        return sum(bson.decode(raw)["event"] == "server.start" for raw in self.records())

    def admin(self, server):
        return Caller.with_key(server.channel, self.admin_key)

    def command(self, server, *args, check=True):
        """A client command as the admin."""
        flags = ("--server", f"http://{server.address}", "--key-file", self.papers.path("admin-keys"))
        return harness.stepwell(*args, *flags, check=check)

    # What is stored, behind the servers' backs.

    def sqlite(self):
        return contextlib.closing(sqlite3.connect(os.path.join(self.data, "stepwell.db"), timeout=30))

    @property
    def database(self):
        return harness.shared_mongodb().client[self.name]

    def refuse_records(self, refuse):
        """Nothing can be added to the audit log any more, or again."""
        if self.uri:
            self.database.command("collMod", "audit_log", validator={"never": {"$exists": True}} if refuse else {})
            return
        with self.sqlite() as connection:
            raises = "CREATE TRIGGER refuses BEFORE INSERT ON audit_log BEGIN SELECT RAISE(ABORT, 'no'); END"
            connection.execute(raises if refuse else "DROP TRIGGER IF EXISTS refuses")

    def records(self):
        """The documents of the audit log as their bytes, with what they are found by."""
        if self.uri:
            from bson.raw_bson import RawBSONDocument

            log = self.database.get_collection(
                "audit_log", codec_options=bson.CodecOptions(document_class=RawBSONDocument)
            )
            return [bytes(record.raw) for record in log.find()]
        with self.sqlite() as connection:
            return [bytes(row[0]) for row in connection.execute("SELECT document FROM audit_log")]

    def settle(self):
        """Waits until everything that was begun has its end in the log, which nobody waits for."""

        def is_settled():
            phases = [bson.decode(raw)["phase"] for raw in self.records()]
            return phases.count("begin") == phases.count("end")

        harness.wait_until("ends are recorded", is_settled)

    def take(self, server, seq):
        """Takes a record away."""
        if self.uri:
            assert self.database.audit_log.delete_one({"server": server, "seq": seq}).deleted_count == 1
            return
        with self.sqlite() as connection, connection:
            gone = connection.execute("DELETE FROM audit_log WHERE server = ? AND seq = ?", (server, seq))
            assert gone.rowcount == 1

    def put(self, server, seq, raw):
        """Puts the bytes of a record in the place of another, or where none is."""
        document = bson.decode(raw)
        if self.uri:
            from bson.raw_bson import RawBSONDocument

            self.database.audit_log.delete_one({"server": server, "seq": seq})
            self.database.audit_log.insert_one(RawBSONDocument(raw))
            return
        at = int(document["at"].timestamp() * 1000) if hasattr(document.get("at"), "timestamp") else 0
        with self.sqlite() as connection, connection:
            sql = "INSERT OR REPLACE INTO audit_log (server, seq, at, document) VALUES (?, ?, ?, ?)"
            connection.execute(sql, (server, seq, at, raw))

    def everything(self, but=()):
        """All that is stored, but for these tables or collections, as text by table and record; and what belongs to
        nothing that is there."""
        found = {"orphans": []}
        if self.uri:
            for name in self.database.list_collection_names():
                if not name.startswith("system.") and name not in but:
                    records = sorted(json_util.dumps(record, sort_keys=True) for record in self.database[name].find())
                    found[name] = records
            pieces = self.database["artifacts.chunks"].distinct("files_id")
            found["orphans"] = sorted(set(pieces) - set(self.database["artifacts.files"].distinct("_id")))
            return found
        with self.sqlite() as connection:
            tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
            for (name,) in tables:
                if name in but or name.startswith(("sqlite_", "search_")):
                    continue
                columns = [row[1] for row in connection.execute(f"PRAGMA table_info({name})")]
                whose = "(SELECT execution_id FROM executions WHERE executions.id = it.execution)"
                whose = whose if "execution" in columns else "''"
                rows = connection.execute(f"SELECT {whose}, it.* FROM {name} it").fetchall()
                found[name] = sorted(map(repr, rows))
                found["orphans"] += [name for row in rows if row[0] is None]
        below = pathlib.Path(self.data) / "artifacts"
        files = [path for path in below.rglob("*") if path.is_file()]
        found["files"] = sorted((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files)
        return found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.stop()
        if self.uri:
            harness.shared_mongodb().client.drop_database(self.name)
        shutil.rmtree(self.data, ignore_errors=True)
        self.papers.remove()


# --- the audit log, from docs/security.md and proto/ ------------------------------------------------------------------

FIELDS = (
    "_id", "server", "seq", "at", "event", "phase", "outcome", "code", "reason", "actor", "peer", "rpc", "target", "count",
    "details", "request_id", "prev", "hash",
)  # fmt: skip
ZEROS = bytes(32)


def own_hash(document):
    """`hash` is the SHA-256 of the document's BSON without `hash`."""
    return hashlib.sha256(bson.encode({name: value for name, value in document.items() if name != "hash"})).digest()


def decoded(raws):
    """Documents by server and number. What is no BSON, or has no place in a chain, stands under None."""
    chains = {}
    for raw in raws:
        try:
            document = bson.decode(raw)
            place = document["server"], document["seq"]
            assert isinstance(place[0], str) and isinstance(place[1], int)
        except (bson.InvalidBSON, KeyError, AssertionError):
            chains.setdefault(None, []).append(raw)
            continue
        chains.setdefault(place[0], []).append(document)
    for server, chain in chains.items():
        if server is not None:
            chain.sort(key=lambda document: document["seq"])
    return chains


def recomputed(raws, heads=()):
    """What is wrong with the log: (flaw, server, number), in the words of `stepwell audit verify`. `heads` are (server,
    number, hash) of records that somebody kept."""
    chains = decoded(raws)
    found = set()
    found.update(("BREAK", None, 0) for _ in chains.pop(None, ()))
    known = list(heads)
    for chain in chains.values():
        for document in chain:
            if document.get("event") == "server.start":
                details = document["details"]
                for head in [*details.get("heads", ()), *details.get("ended", ())]:
                    known.append((head["server"], head["seq"], bytes(head["hash"])))
    for server, chain in chains.items():
        last, prev = 0, ZEROS
        for document in chain:
            seq, digest = document["seq"], bytes(document.get("hash", b""))
            if seq != last + 1:
                found.add(("GAP", server, last + 1))
            elif bytes(document.get("prev", b"")) != prev:
                found.add(("BREAK", server, seq))
            if own_hash(document) != digest:
                found.add(("BREAK", server, seq))
            if any((of, head) == (server, seq) and kept != digest for of, head, kept in known):
                found.add(("BREAK", server, seq))
            last, prev = seq, digest
        if any(head > last for of, head, _ in known if of == server):
            found.add(("LOST_TAIL", server, last + 1))
    for server in {server for server, _, _ in known} - set(chains):
        found.add(("MISSING_CHAIN", server, max(seq for of, seq, _ in known if of == server)))
    return found


def verified(guarded, server, heads=None):
    """What `stepwell audit verify` finds, in the same form, and its exit code."""
    args = ("--heads", heads) if heads else ()
    done = guarded.command(server, "audit", "verify", *args, "--output", "json", check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert "findings" in lines[-1], done.stdout + done.stderr
    assert lines[-1]["findings"] == len(lines) - 1
    flaws = {(line["flaw"].removeprefix("AUDIT_FLAW_"), line["server"], line["seq"]) for line in lines[:-1]}
    return flaws, done.returncode


# --- certificates and tokens, made with openssl -----------------------------------------------------------------------


def openssl(*args, **more):
    return subprocess.run(["openssl", *args], check=True, capture_output=True, timeout=60, **more).stdout


class Authority:
    """Issues certificates, as docs/security.md does it."""

    def __init__(self, papers, name):
        self.papers, self.name = papers, name
        self.serial = 0
        self.key, self.cert = papers.path(f"{name}.key"), papers.path(f"{name}.pem")
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "3650",
            "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            "-keyout", self.key, "-out", self.cert,
        )  # fmt: skip

    def pem(self):
        return pathlib.Path(self.cert).read_text()

    def issue(self, names, usage="serverAuth", subject="/CN=issued"):
        """A certificate and its key, both in PEM."""
        self.serial += 1
        stem = self.papers.path(f"{self.name}-{self.serial}")
        self.papers.write(f"{self.name}-{self.serial}.ext", f"subjectAltName={names}\nextendedKeyUsage={usage}\n")
        openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-subj", subject,
            "-keyout", f"{stem}.key", "-out", f"{stem}.csr",
        )  # fmt: skip
        openssl(
            "x509", "-req", "-in", f"{stem}.csr", "-CA", self.cert, "-CAkey", self.key, "-days", "365",
            "-set_serial", str(self.serial), "-extfile", f"{stem}.ext", "-out", f"{stem}.pem",
        )  # fmt: skip
        return pathlib.Path(f"{stem}.pem").read_text(), pathlib.Path(f"{stem}.key").read_text()


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class SigningKey:
    """An RSA key of an identity provider."""

    def __init__(self, papers, kid):
        self.kid, self.path = kid, papers.path(f"{kid}.rsa")
        openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", self.path)
        self.public = openssl("pkey", "-in", self.path, "-pubout").decode()
        self.modulus = bytes.fromhex(openssl("rsa", "-in", self.path, "-noout", "-modulus").decode().strip().split("=")[1])

    def jwk(self):
        return {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid, "n": b64(self.modulus), "e": "AQAB"}

    def token(self, claims):
        return token({"alg": "RS256", "kid": self.kid}, claims, self.sign)

    def sign(self, message):
        return openssl("dgst", "-sha256", "-sign", self.path, input=message)


def token(header, claims, sign):
    message = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{message}.{b64(sign(message.encode()))}"


def hs256(secret):
    return lambda message: hmac.new(secret, message, hashlib.sha256).digest()


def key_set(*keys):
    return json.dumps({"keys": [key.jwk() for key in keys]})


class Provider:
    """An identity provider over http."""

    def __init__(self):
        self.pages = pages = {}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                page = pages.get(self.path)
                self.send_response(200 if page is not None else 404)
                self.end_headers()
                self.wfile.write((page or "").encode())

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        itself = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        pages["/.well-known/openid-configuration"] = json.dumps(itself)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def publish(self, *keys):
        self.pages["/keys"] = key_set(*keys)

    def claims(self, **more):
        now = int(time.time())
        return {"iss": self.url, "aud": "stepwell", "sub": "user-7", "iat": now, "exp": now + 3600, **more}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
