// Package stepwell is what a Go program needs beside the generated stubs of package stepwellv1: a connection with the
// right settings, a watch that reconnects, and a writer that sends again what was not answered.
//
//	conn, err := stepwell.Connect("127.0.0.1:50051")
//	writer := stepwell.NewWriter(conn)
//	defer writer.Close(ctx)
//	run := stepwell.NewID()
//	writer.Write(ctx, &pb.IngestRequest{Write: &pb.IngestRequest_CreateExecution{
//		CreateExecution: &pb.CreateExecutionRequest{ExecutionId: &run, AppName: "hello"}}})
//	for event, err := range stepwell.Watch(ctx, conn, &pb.WatchExecutionRequest{ExecutionId: run}) { ... }
package stepwell

import (
	"container/list"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "stepwell.dev/go/stepwellv1"
)

// No reply exceeds 4 MiB; a request may have 16 MiB.
const maxReceive = 8 << 20

// Unary calls are repeated while the server is away. Streams are not: Watch and Writer resume them themselves, and a
// retry policy with a timeout would end them.
const serviceConfig = `{"methodConfig": [{
	"name": [{"service": "stepwell.v1.ExecutionService"}, {"service": "stepwell.v1.StepService"},
	         {"service": "stepwell.v1.MetricService"}, {"service": "stepwell.v1.ConfigurationService"},
	         {"service": "stepwell.v1.AnalyticsService"}, {"service": "stepwell.v1.SearchService"}],
	"retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "5s", "backoffMultiplier": 2,
	                "retryableStatusCodes": ["UNAVAILABLE"]}}, {
	"name": [{"service": "stepwell.v1.ExecutionService", "method": "WatchExecution"},
	         {"service": "stepwell.v1.ExecutionService", "method": "WatchExecutions"}]}]}`

// Connect makes a connection with the settings that Stepwell wants: pings, so that a dead connection is found within 40
// seconds, room for the largest replies, and retries of unary calls. It connects lazily; an address where nobody
// listens is no error. Without transport credentials among the options it is not encrypted.
func Connect(target string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	defaults := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReceive)),
		grpc.WithDefaultServiceConfig(serviceConfig),
	}
	return grpc.NewClient(target, append(defaults, options...)...)
}

// NewID makes an id for an execution or a step key: a random UUID.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// ---- what an error asks for --------------------------------------------------------------------------------------

func detail[T proto.Message](s *status.Status) (T, bool) {
	for _, d := range s.Details() {
		if found, ok := d.(T); ok {
			return found, true
		}
	}
	var none T
	return none, false
}

// Reason is the stable reason of an error of Stepwell, such as STALE_REVISION; empty for other errors.
func Reason(err error) string {
	if info, ok := detail[*errdetails.ErrorInfo](status.Convert(err)); ok && info.Domain == "stepwell" {
		return info.Reason
	}
	return ""
}

// retryAfter says whether the server wants the call once more, and when.
func retryAfter(s *status.Status) (time.Duration, bool) {
	if info, ok := detail[*errdetails.RetryInfo](s); ok {
		return info.GetRetryDelay().AsDuration(), true
	}
	return 0, false
}

// backoff waits 0.1 s, doubling to 5 s, with jitter.
type backoff struct{ next time.Duration }

func (b *backoff) wait(ctx context.Context, least time.Duration) error {
	if b.next == 0 {
		b.next = 100 * time.Millisecond
	}
	wait := max(least, b.next/2+mathrand.N(b.next/2))
	b.next = min(2*b.next, 5*time.Second)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ---- watching ----------------------------------------------------------------------------------------------------

// Event is one event of a watch. Exactly one of its fields but Token is set.
type Event struct {
	// Token resumes after this event, with any server of the cluster; empty in events of the current state.
	Token string
	// Reset: history did not reach back to where the watch was, so what was known is void and the current state follows.
	Reset bool
	// Live: the current state has been sent; what follows are changes.
	Live bool

	Execution *pb.ExecutionChange
	Step      *pb.StepChange
	Artifact  *pb.ArtifactChange
	Metrics   *pb.MetricsRecorded
}

// Watch watches one execution until it has ended, or until ctx is done. It reconnects for ever, with the last token, and
// begins anew (Event.Reset) where the token has expired. A record older than one that was delivered is dropped; one with
// an equal revision is passed on, since other programs change records without changing the revision. The error, which
// comes last, is one that no repetition mends.
func Watch(ctx context.Context, conn grpc.ClientConnInterface, request *pb.WatchExecutionRequest) iter.Seq2[*Event, error] {
	request = proto.CloneOf(request)
	client := pb.NewExecutionServiceClient(conn)
	return watch(ctx, request.GetResumeToken(), func(ctx context.Context, token string) (func() (*wire, error), error) {
		request.ResumeToken = &token
		stream, err := client.WatchExecution(ctx, request)
		if err != nil {
			return nil, err
		}
		return func() (*wire, error) {
			m, err := stream.Recv()
			if err != nil {
				return nil, err
			}
			return &wire{m.ResumeToken, m.GetExecution(), m.GetStep(), m.GetArtifact(), m.GetMetrics(), m.GetSnapshotComplete() != nil}, nil
		}, nil
	})
}

// WatchAll watches all executions that match a filter, until ctx is done; in everything else it is as Watch.
func WatchAll(ctx context.Context, conn grpc.ClientConnInterface, request *pb.WatchExecutionsRequest) iter.Seq2[*Event, error] {
	request = proto.CloneOf(request)
	client := pb.NewExecutionServiceClient(conn)
	return watch(ctx, request.GetResumeToken(), func(ctx context.Context, token string) (func() (*wire, error), error) {
		request.ResumeToken = &token
		stream, err := client.WatchExecutions(ctx, request)
		if err != nil {
			return nil, err
		}
		return func() (*wire, error) {
			m, err := stream.Recv()
			if err != nil {
				return nil, err
			}
			return &wire{m.ResumeToken, m.GetExecution(), m.GetStep(), m.GetArtifact(), m.GetMetrics(), m.GetSnapshotComplete() != nil}, nil
		}, nil
	})
}

// wire is an event as either call sends it.
type wire struct {
	token     string
	execution *pb.ExecutionChange
	step      *pb.StepChange
	artifact  *pb.ArtifactChange
	metrics   *pb.MetricsRecorded
	complete  bool
}

type opener func(ctx context.Context, token string) (next func() (*wire, error), err error)

func watch(ctx context.Context, token string, open opener) iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		var wait backoff
		seen := newRevisions(1 << 16)
		delivered := false
		for {
			again, err := watchOnce(ctx, &token, open, seen, &delivered, &wait, yield)
			if !again {
				return
			}
			if ctx.Err() != nil {
				yield(nil, ctx.Err())
				return
			}
			if err == nil {
				return // The execution has ended, and so has the watch.
			}
			s := status.Convert(err)
			after, said := retryAfter(s)
			switch s.Code() {
			case codes.OutOfRange:
				token = ""
			case codes.ResourceExhausted:
				if !said { // The client's own limit: it would fail again.
					yield(nil, err)
					return
				}
			case codes.Unavailable, codes.Aborted, codes.Internal, codes.Unknown, codes.Canceled, codes.DeadlineExceeded:
			default:
				yield(nil, err)
				return
			}
			if err := wait.wait(ctx, after); err != nil {
				yield(nil, err)
				return
			}
			if token == "" && delivered {
				seen.clear()
				delivered = false
				if !yield(&Event{Reset: true}, nil) {
					return
				}
			}
		}
	}
}

// watchOnce passes on one stream to its end. False: the caller wants no more.
func watchOnce(
	ctx context.Context, token *string, open opener, seen *revisions, delivered *bool, wait *backoff,
	yield func(*Event, error) bool,
) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	next, err := open(ctx, *token)
	if err != nil {
		return true, err
	}
	for {
		m, err := next()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return true, err
		}
		wait.next = 0
		if m.token != "" {
			*token = m.token
		}
		event := &Event{m.token, false, m.complete, m.execution, m.step, m.artifact, m.metrics}
		switch {
		case m.execution != nil:
			x := m.execution.GetExecution()
			if !seen.passes(x.GetExecutionId(), m.execution.ChangeType, x.GetRevision()) {
				continue
			}
		case m.step != nil:
			s := m.step.GetStep()
			if !seen.passes(fmt.Sprintf("%s/%d", s.GetExecutionId(), s.GetStepId()), m.step.ChangeType, s.GetRevision()) {
				continue
			}
		case m.artifact == nil && m.metrics == nil && !m.complete:
			continue // A keepalive; its token is kept.
		}
		*delivered = true
		if !yield(event, nil) {
			return false, nil
		}
	}
}

// revisions are the highest ones delivered, of the records delivered last.
type revisions struct {
	most  int
	order *list.List
	known map[string]*list.Element
}

type revision struct {
	record string
	number int64
}

func newRevisions(most int) *revisions {
	return &revisions{most, list.New(), map[string]*list.Element{}}
}

func (r *revisions) clear() { *r = *newRevisions(r.most) }

func (r *revisions) passes(record string, change pb.ChangeType, number int64) bool {
	at, known := r.known[record]
	if change == pb.ChangeType_CHANGE_TYPE_DELETED {
		if known {
			r.order.Remove(at)
			delete(r.known, record)
		}
		return true
	}
	if known {
		if number < at.Value.(*revision).number {
			return false
		}
		at.Value.(*revision).number = number
		r.order.MoveToFront(at)
		return true
	}
	r.known[record] = r.order.PushFront(&revision{record, number})
	if r.order.Len() > r.most {
		delete(r.known, r.order.Remove(r.order.Back()).(*revision).record)
	}
	return true
}

// ---- writing -----------------------------------------------------------------------------------------------------

// ErrClosed is what Write says once the writer is closed, and what waits for an answer that will not come any more.
var ErrClosed = errors.New("stepwell: the writer is closed")

// What waits for an answer, at most; Write waits beyond it.
const (
	maxPending      = 10_000
	maxPendingBytes = 64 << 20
)

// Writer sends writes over one Ingest stream and sends again, in their order and over a new stream, what was not
// answered: after the stream has ended, and after an answer that asks for it. It keeps them in memory, so what is not
// answered when the program ends may be lost.
type Writer struct {
	client pb.IngestServiceClient
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	mutex    sync.Mutex
	changed  *sync.Cond
	queue    []*Pending // not answered, in order
	sent     int        // so many of them were sent over the stream that is open
	bytes    int
	sequence int64
	updates  int64
	closed   bool
	last     error
}

// Pending is a write under way.
type Pending struct {
	request *pb.IngestRequest
	size    int
	done    chan struct{}
	answer  *pb.IngestResponse
	err     error
}

// Wait returns the answer once the write is durable, or the error with which it was refused for good.
func (p *Pending) Wait(ctx context.Context) (*pb.IngestResponse, error) {
	select {
	case <-p.done:
		return p.answer, p.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// NewWriter makes a writer; it connects with the first write.
func NewWriter(conn grpc.ClientConnInterface) *Writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Writer{client: pb.NewIngestServiceClient(conn), ctx: ctx, cancel: cancel, done: make(chan struct{})}
	w.changed = sync.NewCond(&w.mutex)
	go w.run()
	return w
}

// Write queues a write and sets its sequence. What makes it safe to send again is filled in where it is missing: ids of
// executions and keys of steps, times, request_id of points and update_sequence. It waits only while 10,000 writes or
// 64 MiB have no answer yet. The request belongs to the writer from now on.
func (w *Writer) Write(ctx context.Context, request *pb.IngestRequest) (*Pending, error) {
	stop := context.AfterFunc(ctx, func() {
		w.mutex.Lock()
		defer w.mutex.Unlock()
		w.changed.Broadcast()
	})
	defer stop()
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.complete(request)
	size := proto.Size(request) + 16
	for !w.closed && ctx.Err() == nil && len(w.queue) > 0 && (len(w.queue) >= maxPending || w.bytes+size > maxPendingBytes) {
		w.changed.Wait()
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if w.closed {
		return nil, ErrClosed
	}
	w.sequence++
	request.Sequence = w.sequence
	p := &Pending{request: request, size: size, done: make(chan struct{})}
	w.queue = append(w.queue, p)
	w.bytes += size
	w.changed.Broadcast()
	return p, nil
}

// complete fills in what makes a write safe to repeat, and keeps its time where it arrives late.
func (w *Writer) complete(request *pb.IngestRequest) {
	id := func(field **string) {
		if *field == nil {
			made := NewID()
			*field = &made
		}
	}
	now := func(field **timestamppb.Timestamp) {
		if *field == nil {
			*field = timestamppb.Now()
		}
	}
	update := func(field **int64) {
		if *field == nil {
			w.updates = max(w.updates+1, time.Now().UnixMicro())
			number := w.updates
			*field = &number
		}
	}
	switch write := request.Write.(type) {
	case *pb.IngestRequest_CreateExecution:
		id(&write.CreateExecution.ExecutionId)
		now(&write.CreateExecution.StartedAt)
	case *pb.IngestRequest_FinishExecution:
		now(&write.FinishExecution.CompletedAt)
	case *pb.IngestRequest_UpdateExecution:
		update(&write.UpdateExecution.UpdateSequence)
	case *pb.IngestRequest_StartStep:
		if write.StartStep.StepId == nil {
			id(&write.StartStep.StepKey)
		}
		if write.StartStep.Attempt == nil {
			first := int32(1)
			write.StartStep.Attempt = &first
		}
		now(&write.StartStep.StartedAt)
	case *pb.IngestRequest_UpdateStep:
		update(&write.UpdateStep.UpdateSequence)
	case *pb.IngestRequest_FinishStep:
		now(&write.FinishStep.CompletedAt)
	case *pb.IngestRequest_RecordMetrics:
		id(&write.RecordMetrics.RequestId)
	}
}

// Flush waits until everything written so far is answered.
func (w *Writer) Flush(ctx context.Context) error {
	w.mutex.Lock()
	waiting := append([]*Pending(nil), w.queue...)
	w.mutex.Unlock()
	for _, p := range waiting {
		if _, err := p.Wait(ctx); ctx.Err() != nil {
			return errors.Join(ctx.Err(), err, w.Err())
		}
	}
	return nil
}

// Close flushes and ends the writer. What is not answered when ctx is done fails with ErrClosed.
func (w *Writer) Close(ctx context.Context) error {
	err := w.Flush(ctx)
	w.mutex.Lock()
	w.closed = true
	w.changed.Broadcast()
	w.mutex.Unlock()
	w.cancel()
	<-w.done
	return err
}

// Err is why the last stream ended; nil while the writer is connected.
func (w *Writer) Err() error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.last
}

func (w *Writer) run() {
	defer close(w.done)
	var wait backoff
	for {
		w.mutex.Lock()
		for len(w.queue) == 0 && !w.closed {
			w.changed.Wait()
		}
		w.sent = 0
		if w.closed {
			for _, p := range w.queue {
				p.err = ErrClosed
				close(p.done)
			}
			w.queue = nil
			w.mutex.Unlock()
			return
		}
		w.mutex.Unlock()

		answered, after, err := w.stream()
		if answered {
			wait.next = 0
		}
		s := status.Convert(err)
		w.mutex.Lock()
		w.last = err
		if info, ok := detail[*errdetails.ErrorInfo](s); ok && info.Reason == "BAD_MESSAGE" {
			// It names the last message that could be read: the one after it never can be.
			w.refuse(info.Metadata["last_sequence"], err)
		} else if s.Code() == codes.Unimplemented {
			for _, p := range w.queue {
				p.err = err
				close(p.done)
			}
			w.queue, w.bytes = nil, 0
			w.changed.Broadcast()
		}
		w.mutex.Unlock()
		switch s.Code() {
		case codes.Unauthenticated, codes.PermissionDenied:
			after = 30 * time.Second
		}
		if said, ok := retryAfter(s); ok {
			after = max(after, said)
		}
		_ = wait.wait(w.ctx, after)
	}
}

// refuse fails the first write after the one that the server read last. The mutex is held.
func (w *Writer) refuse(lastRead string, err error) {
	var last int64
	_, _ = fmt.Sscan(lastRead, &last) // absent: it read none
	for i, p := range w.queue {
		if p.request.Sequence > last {
			p.err = err
			w.forget(i)
			return
		}
	}
}

// forget takes an answered write out of the queue. The mutex is held.
func (w *Writer) forget(i int) {
	p := w.queue[i]
	w.queue = append(w.queue[:i], w.queue[i+1:]...)
	if i < w.sent {
		w.sent--
	}
	w.bytes -= p.size
	close(p.done)
	w.changed.Broadcast()
}

// stream sends and receives over one stream until it has ended, or until an answer asks for a new one.
func (w *Writer) stream() (answered bool, after time.Duration, err error) {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	stream, err := w.client.Ingest(ctx)
	if err != nil {
		return false, 0, err
	}
	var over bool // guarded by the mutex: nothing more is sent over this stream
	sender := make(chan struct{})
	go func() {
		defer close(sender)
		for {
			w.mutex.Lock()
			for !over && !w.closed && w.sent == len(w.queue) {
				w.changed.Wait()
			}
			if over || w.closed {
				w.mutex.Unlock()
				_ = stream.CloseSend()
				return
			}
			next := w.queue[w.sent].request
			w.sent++
			w.mutex.Unlock()
			if stream.Send(next) != nil {
				return // Recv says why.
			}
		}
	}()
	defer func() {
		cancel()
		w.mutex.Lock()
		over = true
		w.changed.Broadcast()
		w.mutex.Unlock()
		<-sender
	}()
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return answered, after, nil
		}
		if err != nil {
			return answered, after, err
		}
		w.mutex.Lock()
		w.last = nil
		refusal := answer.GetError()
		if refusal != nil {
			s := status.FromProto(refusal)
			wait, again := retryAfter(s)
			if again || Reason(s.Err()) == "EARLIER_WRITE_FAILED" {
				// It stays in the queue. What is under way is still answered; then a new stream begins.
				after = max(after, wait)
				if !over {
					over = true
					time.AfterFunc(15*time.Second, cancel)
				}
				w.changed.Broadcast()
				w.mutex.Unlock()
				continue
			}
		}
		for i, p := range w.queue[:w.sent] {
			if p.request.Sequence == answer.Sequence {
				if refusal != nil {
					p.err = status.ErrorProto(refusal)
				} else {
					p.answer = answer
				}
				answered = true
				w.forget(i)
				break
			}
		}
		w.mutex.Unlock()
	}
}
