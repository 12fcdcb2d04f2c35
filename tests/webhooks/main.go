// Verifies requests as a receiver in Go does, with the public library of Standard Webhooks: each line of the standard input has
// the secret of a subscription, and the headers and the body of a request. None that was changed is let through.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

type request struct {
	Secret  string            `json:"secret"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
}

func verify(line []byte) error {
	var told request
	if err := json.Unmarshal(line, &told); err != nil {
		return err
	}
	webhook, err := webhooks.NewWebhook(told.Secret)
	if err != nil {
		return err
	}
	headers := http.Header{}
	for name, value := range told.Headers {
		headers.Set(name, value)
	}
	if err := webhook.Verify([]byte(told.Body), headers); err != nil {
		return err
	}
	if webhook.Verify([]byte(told.Body+" "), headers) == nil {
		return fmt.Errorf("%s: a changed body is verified too", headers.Get("webhook-id"))
	}
	return nil
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	verified := 0
	for ; lines.Scan(); verified++ {
		if err := verify(lines.Bytes()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("verified", verified)
}
