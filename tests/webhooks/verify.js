// Verifies requests as a receiver in Node does, with the public library of Standard Webhooks: each line of the standard input
// has the secret of a subscription, and the headers and the body of a request. None that was changed is let through.
"use strict";

const fs = require("node:fs");
const { Webhook, WebhookVerificationError } = require("standardwebhooks");

const lines = fs.readFileSync(0, "utf8").split("\n").filter((line) => line !== "");
for (const line of lines) {
  const { secret, headers, body } = JSON.parse(line);
  const webhook = new Webhook(secret);
  const event = webhook.verify(body, headers);
  if (event.id !== headers["webhook-id"]) throw new Error(`${event.id} is not the id of its request`);
  try {
    webhook.verify(`${body} `, headers);
  } catch (error) {
    if (error instanceof WebhookVerificationError) continue;
    throw error;
  }
  throw new Error(`${event.id}: a changed body is verified too`);
}
console.log("verified", lines.length);
