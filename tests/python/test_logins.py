"""How a server proves to MongoDB who it is: by a certificate (MONGODB-X509) and by a password (SCRAM), over TLS, at a mongod that
lets nobody in without. PLAIN and MONGODB-OIDC are for other editions of mongod than the one that is free."""

import pathlib
import unittest
import urllib.parse

import pymongo

import harness
from trust import Authority, Papers, openssl

DATABASE = "own"
PASSWORD = "a word with spaces & signs/"
ROOT, ROOT_PASSWORD = "root", "of the test"


class Strict(harness.Process):
    """A replica set of one node that asks everybody over TLS who they are."""

    def __init__(self, papers, authority):
        self.port = harness.free_port()
        self.host, self.ca = f"127.0.0.1:{self.port}", authority.cert
        certificate = papers.write("mongod.pem", "".join(authority.issue("IP:127.0.0.1,DNS:localhost")))
        key = papers.write("members.key", "c2hhcmVkIGJ5IGFsbCBtZW1iZXJz")
        pathlib.Path(key).chmod(0o600)
        data = pathlib.Path(papers.path("data"))
        data.mkdir()
        super().__init__("mongod", [
            harness.mongod(), "--port", str(self.port), "--bind_ip", "127.0.0.1", "--dbpath", str(data),
            "--replSet", "rs0", "--wiredTigerCacheSizeGB", "0.5", "--nounixsocket",
            "--auth", "--keyFile", key,
            "--tlsMode", "requireTLS", "--tlsCertificateKeyFile", certificate, "--tlsCAFile", self.ca,
            "--tlsAllowConnectionsWithoutCertificates",
        ])
        # Somebody on this machine may make the first user.
        tls = f"tls=true&tlsCAFile={urllib.parse.quote(self.ca)}"
        with pymongo.MongoClient(f"mongodb://{self.host}/?directConnection=true&{tls}") as first:
            member = {"_id": 0, "host": self.host}
            first.admin.command("replSetInitiate", {"_id": "rs0", "members": [member]})
            harness.wait_until("primary", lambda: self.check_alive() or first.admin.command("hello")["isWritablePrimary"])
            first.admin.command("createUser", ROOT, pwd=ROOT_PASSWORD, roles=["root"])
        self.admin = pymongo.MongoClient(
            self.host, username=ROOT, password=ROOT_PASSWORD, tls=True, tlsCAFile=self.ca, replicaSet="rs0"
        )

    def uri(self, who="", **options):
        options = {"replicaSet": "rs0", "tls": "true", "tlsCAFile": self.ca, "serverSelectionTimeoutMS": "5000", **options}
        return f"mongodb://{who}{self.host}/?{urllib.parse.urlencode(options, quote_via=urllib.parse.quote)}"

    def stop(self):
        if hasattr(self, "admin"):
            self.admin.close()
        return super().stop()


class Logins(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.papers = Papers()
        cls.addClassCleanup(cls.papers.remove)
        cls.authority = Authority(cls.papers, "authority")
        cls.mongod = Strict(cls.papers, cls.authority)
        cls.addClassCleanup(cls.mongod.stop)
        roles = [{"role": "readWrite", "db": DATABASE}]
        users = cls.mongod.admin["$external"]
        users.command("createUser", "CN=stepwell,OU=apps,O=Example", roles=roles)
        cls.mongod.admin[DATABASE].command("createUser", "stepwell", pwd=PASSWORD, roles=roles)

    def certificate(self, name, subject, password=None):
        """The path of a certificate with its key, which is encrypted where there is a password."""
        certificate, key = self.authority.issue("DNS:stepwell.example", "clientAuth", subject)
        if password:
            key = openssl(
                "pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", f"pass:{password}", input=key.encode()
            ).decode()
            self.assertIn("ENCRYPTED", key)
        return self.papers.write(name, key + certificate)

    def works_with(self, uri):
        """A server that was given this URI in a file stores what is reported to it."""
        path = self.papers.write("uri", uri)
        pathlib.Path(path).chmod(0o600)
        server = harness.Server(database=DATABASE, env={"STEPWELL_MONGODB_URI_FILE": path})
        self.addCleanup(server.stop)
        execution = harness.stubs().execution
        stub = harness.stubs().execution_grpc.ExecutionServiceStub(server.channel)
        created = stub.CreateExecution(execution.CreateExecutionRequest(app_name="logins"))
        identity = created.execution.execution_id
        self.assertIsNotNone(self.mongod.admin[DATABASE].executions.find_one({"execution_id": identity}))
        # Whoever it is, that is who they are at the database.
        in_use = self.mongod.admin.admin.aggregate([
            {"$currentOp": {"allUsers": True, "idleConnections": True}}, {"$match": {"appName": "stepwell"}},
        ])
        users = {user["user"] for operation in in_use for user in operation.get("effectiveUsers", [])}
        self.assertEqual(server.stop(), 0)
        return users

    def test_a_certificate(self):
        path = self.certificate("good.pem", "/O=Example/OU=apps/CN=stepwell")
        login = {"authMechanism": "MONGODB-X509", "authSource": "$external"}
        users = self.works_with(self.mongod.uri(tlsCertificateKeyFile=path, **login))
        self.assertEqual(users, {"CN=stepwell,OU=apps,O=Example"})

    def test_a_certificate_with_a_password(self):
        path = self.certificate("encrypted.pem", "/O=Example/OU=apps/CN=stepwell", PASSWORD)
        login = {"authMechanism": "MONGODB-X509", "tlsCertificateKeyFilePassword": PASSWORD}
        users = self.works_with(self.mongod.uri(tlsCertificateKeyFile=path, **login))
        self.assertEqual(users, {"CN=stepwell,OU=apps,O=Example"})

    def test_a_password(self):
        who = f"stepwell:{urllib.parse.quote(PASSWORD, safe='')}@"
        for mechanism in ["SCRAM-SHA-1", "SCRAM-SHA-256"]:
            users = self.works_with(self.mongod.uri(who, authMechanism=mechanism, authSource=DATABASE))
            self.assertEqual(users, {"stepwell"}, mechanism)

    def test_somebody_else(self):
        stranger = self.certificate("stranger.pem", "/O=Example/OU=apps/CN=stranger")
        for uri, why in [
            (self.mongod.uri(tlsCertificateKeyFile=stranger, authMechanism="MONGODB-X509"), "(?i)authenticat"),
            (self.mongod.uri("stepwell:wrong@", authSource=DATABASE), "(?i)authenticat"),
            (self.mongod.uri(), "privilege"),
        ]:
            done = harness.stepwell("doctor", "--mongodb-uri", uri, "--mongodb-database", DATABASE, check=False)
            self.assertNotEqual(done.returncode, 0, done.stdout)
            said = done.stdout + done.stderr
            self.assertRegex(said, why)
            self.assertNotIn("wrong", said)


if __name__ == "__main__":
    unittest.main()
