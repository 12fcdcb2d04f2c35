"""Receives notifications as a program of somebody else would: with the public library of Standard Webhooks, which verifies
each request with the secret that the subscription was given, on both stores."""

import http.server
import json
import threading
import unittest

import grpc
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

import harness

STORES = {"sqlite": False, "mongodb": True}


class Receiver:
    """Takes everything that is posted to it."""

    def __init__(self):
        received = self.received = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                received.append((dict(self.headers), body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class Notifications(unittest.TestCase):
    def told(self, on_mongodb):
        stubs = harness.stubs()
        service, grpc_service = stubs.notification, stubs.notification_grpc
        uri = harness.shared_mongodb().uri if on_mongodb else None
        flags = ("--notifications-allow-http", "true", "--notifications-allow-networks", "127.0.0.0/8")
        with Receiver() as receiver, harness.Server(uri, "notified" if on_mongodb else None, args=flags) as server:
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
                events = [Webhook(first).verify(body, headers) for headers, body in received]
                kinds = [event["type"] for event in events]
                started, failed = "stepwell.execution.started", "stepwell.execution.failed"
                self.assertEqual(kinds, [started, failed, started])
                self.assertEqual(events[1]["data"]["execution"]["error"]["message"], "broke")
                headers, body = received[2]
                self.assertEqual(Webhook(second).verify(body, headers)["subject"], "f")
                with self.assertRaises(WebhookVerificationError):
                    Webhook(second).verify(received[0][1], received[0][0])
                changed = json.dumps({**json.loads(body), "subject": "g"}).encode()
                with self.assertRaises(WebhookVerificationError):
                    Webhook(second).verify(changed, headers)


if __name__ == "__main__":
    unittest.main()
