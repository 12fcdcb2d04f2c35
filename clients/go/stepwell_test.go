package stepwell

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	pb "stepwell.dev/go/stepwellv1"
)

// server is a real one on an embedded store, which can be killed and started again at the same address.
type server struct {
	t       *testing.T
	address string
	data    string
	child   *exec.Cmd
}

func newServer(t *testing.T) *server {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := &server{t: t, address: listener.Addr().String(), data: t.TempDir()}
	must(t, listener.Close())
	t.Cleanup(func() { s.end(syscall.SIGKILL) })
	return s
}

func (s *server) start(args ...string) {
	s.t.Helper()
	binary := os.Getenv("STEPWELL_BIN")
	if binary == "" {
		s.t.Fatal("STEPWELL_BIN names no server")
	}
	s.child = exec.Command(binary, append([]string{"serve", "--listen", s.address, "--data-dir", s.data}, args...)...)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "STEPWELL_") {
			s.child.Env = append(s.child.Env, variable)
		}
	}
	s.child.Dir = s.data
	must(s.t, s.child.Start())
	conn := s.connect()
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	answer, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	must(s.t, err)
	if answer.Status != healthpb.HealthCheckResponse_SERVING {
		s.t.Fatal(answer.Status)
	}
}

func (s *server) end(signal syscall.Signal) {
	if s.child != nil {
		_ = s.child.Process.Signal(signal)
		_ = s.child.Wait()
		s.child = nil
	}
}

func (s *server) connect() *grpc.ClientConn {
	conn, err := Connect(s.address)
	must(s.t, err)
	return conn
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func create(id string) *pb.IngestRequest {
	return &pb.IngestRequest{Write: &pb.IngestRequest_CreateExecution{
		CreateExecution: &pb.CreateExecutionRequest{ExecutionId: &id, AppName: "go"}}}
}

func start(id, key, name string, input *structpb.Value) *pb.IngestRequest {
	return &pb.IngestRequest{Write: &pb.IngestRequest_StartStep{
		StartStep: &pb.StartStepRequest{ExecutionId: id, StepKey: &key, StepName: name, Input: input}}}
}

func finishStep(id, key string) *pb.IngestRequest {
	return &pb.IngestRequest{Write: &pb.IngestRequest_FinishStep{FinishStep: &pb.FinishStepRequest{
		ExecutionId: id, StepKey: &key, Status: pb.StepStatus_STEP_STATUS_COMPLETED}}}
}

func finish(id string) *pb.IngestRequest {
	return &pb.IngestRequest{Write: &pb.IngestRequest_FinishExecution{FinishExecution: &pb.FinishExecutionRequest{
		ExecutionId: id, Status: pb.ExecutionStatus_EXECUTION_STATUS_COMPLETED}}}
}

func write(t *testing.T, w *Writer, request *pb.IngestRequest) *Pending {
	t.Helper()
	pending, err := w.Write(within(t), request)
	must(t, err)
	return pending
}

func TestARunIsReportedAndWatched(t *testing.T) {
	s := newServer(t)
	s.start()
	conn := s.connect()
	defer conn.Close()
	writer := NewWriter(conn)
	run := NewID()
	if _, err := write(t, writer, create(run)).Wait(within(t)); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for event, err := range Watch(within(t), conn, &pb.WatchExecutionRequest{ExecutionId: run, IncludeSteps: true}) {
		must(t, err)
		switch {
		case event.Live:
			seen = append(seen, "live")
			write(t, writer, start(run, "fetch", "fetch", nil))
			write(t, writer, finishStep(run, "fetch"))
			write(t, writer, finish(run))
			must(t, writer.Close(within(t)))
		case event.Step != nil && event.Step.Step.Status == pb.StepStatus_STEP_STATUS_COMPLETED:
			seen = append(seen, "step")
		case event.Execution != nil:
			seen = append(seen, event.Execution.Execution.Status.String())
		}
	}
	want := "[EXECUTION_STATUS_RUNNING live step EXECUTION_STATUS_COMPLETED]"
	if fmt.Sprint(seen) != want {
		t.Fatalf("%v, expected %v", seen, want)
	}
	if _, err := writer.Write(within(t), create(NewID())); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

func TestNothingIsLostOrDoubledWhenTheServerIsKilledBetweenWrites(t *testing.T) {
	s := newServer(t)
	s.start()
	conn := s.connect()
	defer conn.Close()
	writer := NewWriter(conn)
	run := NewID()
	if _, err := write(t, writer, create(run)).Wait(within(t)); err != nil {
		t.Fatal(err)
	}
	const steps = 200
	ended := make(chan error, 1)
	completed := map[string]int{}
	go func() {
		for event, err := range Watch(within(t), conn, &pb.WatchExecutionRequest{ExecutionId: run, IncludeSteps: true}) {
			if err != nil {
				ended <- err
				return
			}
			if event.Reset {
				clear(completed)
			}
			if event.Step != nil && event.Step.Step.Status == pb.StepStatus_STEP_STATUS_COMPLETED {
				completed[event.Step.Step.GetStepKey()]++
			}
		}
		ended <- nil
	}()
	var pending []*Pending
	for i := range steps {
		key := fmt.Sprint("step-", i)
		pending = append(pending, write(t, writer, start(run, key, "work", nil)), write(t, writer, finishStep(run, key)))
		if i%50 == 25 {
			signal := syscall.SIGKILL
			if i == 125 {
				signal = syscall.SIGTERM
			}
			s.end(signal)
			s.start()
		}
	}
	pending = append(pending, write(t, writer, finish(run)))
	must(t, writer.Close(within(t)))
	for _, p := range pending {
		if _, err := p.Wait(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	must(t, <-ended)
	if len(completed) != steps {
		t.Fatalf("the watch saw %d of %d steps", len(completed), steps)
	}
	page, err := pb.NewStepServiceClient(conn).ListSteps(within(t), &pb.ListStepsRequest{ExecutionId: run, PageSize: 1000})
	must(t, err)
	if len(page.Steps) != steps {
		t.Fatalf("%d steps are stored", len(page.Steps))
	}
	for _, step := range page.Steps {
		if step.RetryCount != 0 || step.Status != pb.StepStatus_STEP_STATUS_COMPLETED {
			t.Fatal(step)
		}
	}
}

func TestAServerThatIsAwayAtFirstIsWaitedFor(t *testing.T) {
	s := newServer(t)
	conn := s.connect()
	defer conn.Close()
	writer := NewWriter(conn)
	run := NewID()
	pending := write(t, writer, create(run))
	short, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := pending.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if err := writer.Err(); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
	s.start()
	if _, err := pending.Wait(within(t)); err != nil {
		t.Fatal(err)
	}
	must(t, writer.Close(within(t)))
}

func TestARefusedWriteHoldsNothingUp(t *testing.T) {
	s := newServer(t)
	s.start()
	conn := s.connect()
	defer conn.Close()
	writer := NewWriter(conn)
	run := NewID()
	write(t, writer, create(run))
	bad := write(t, writer, start(run, "bad", "", nil))
	unknown := write(t, writer, finishStep(run, "nobody"))
	large := write(t, writer, start(run, "large", "large", structpb.NewStringValue(strings.Repeat("x", 17<<20))))
	good := write(t, writer, start(run, "good", "good", nil))
	must(t, writer.Flush(within(t)))
	for pending, code := range map[*Pending]codes.Code{
		bad: codes.InvalidArgument, unknown: codes.NotFound, large: codes.InvalidArgument, good: codes.OK,
	} {
		if _, err := pending.Wait(within(t)); status.Code(err) != code {
			t.Fatalf("%v, expected %v", err, code)
		}
	}
	if _, err := unknown.Wait(within(t)); Reason(err) != "STEP_NOT_FOUND" {
		t.Fatal(Reason(err))
	}
	must(t, writer.Close(within(t)))
}

func TestAWatchBeginsAnewWhereItsTokenHasExpired(t *testing.T) {
	s := newServer(t)
	s.start()
	conn := s.connect()
	defer conn.Close()
	writer := NewWriter(conn)
	run := NewID()
	if _, err := write(t, writer, create(run)).Wait(within(t)); err != nil {
		t.Fatal(err)
	}
	lives := 0
	var seen []string
	for event, err := range Watch(within(t), conn, &pb.WatchExecutionRequest{ExecutionId: run, IncludeSteps: true}) {
		must(t, err)
		switch {
		case event.Reset:
			seen = append(seen, "reset")
		case event.Live:
			seen = append(seen, "live")
			if lives++; lives == 1 {
				s.end(syscall.SIGTERM)
				s.forgetHistory()
				s.start()
			} else {
				write(t, writer, finish(run))
			}
		case event.Execution != nil:
			seen = append(seen, event.Execution.Execution.Status.String())
		}
	}
	want := "[EXECUTION_STATUS_RUNNING live reset EXECUTION_STATUS_RUNNING live EXECUTION_STATUS_COMPLETED]"
	if fmt.Sprint(seen) != want {
		t.Fatalf("%v, expected %v", seen, want)
	}
	must(t, writer.Close(within(t)))
}

// forgetHistory does what the server does by itself when its table of changes is full or old.
func (s *server) forgetHistory() {
	files, err := filepath.Glob(filepath.Join(s.data, "*.db"))
	must(s.t, err)
	if len(files) != 1 {
		s.t.Fatal(files)
	}
	script := `import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("UPDATE meta SET value = (SELECT max(seq) + 1 FROM changes) WHERE name = 'pruned_through'")
db.execute("DELETE FROM changes")
db.commit()`
	out, err := exec.Command("python3", "-c", script, files[0]).CombinedOutput()
	if err != nil {
		s.t.Fatal(string(out))
	}
}

func TestAWatchOfWhatThereIsNotSaysSo(t *testing.T) {
	s := newServer(t)
	s.start()
	conn := s.connect()
	defer conn.Close()
	for _, err := range Watch(within(t), conn, &pb.WatchExecutionRequest{ExecutionId: "nobody"}) {
		if status.Code(err) != codes.NotFound || Reason(err) != "EXECUTION_NOT_FOUND" {
			t.Fatal(err)
		}
	}
}

func TestAnOlderRecordIsDroppedAndAnEqualOnePassedOn(t *testing.T) {
	seen := newRevisions(2)
	const updated = pb.ChangeType_CHANGE_TYPE_UPDATED
	for i, c := range []struct {
		record string
		number int64
		passes bool
	}{
		{"a", 5, true}, {"a", 4, false}, {"a", 5, true}, {"a", 6, true}, {"b", 1, true},
		// Only the last two records are remembered.
		{"c", 1, true}, {"a", 1, true}, {"c", 0, false},
	} {
		if seen.passes(c.record, updated, c.number) != c.passes {
			t.Fatalf("case %d: %v", i, c)
		}
	}
	if !seen.passes("c", pb.ChangeType_CHANGE_TYPE_DELETED, 0) || !seen.passes("c", updated, 0) {
		t.Fatal("a deleted record begins anew")
	}
}
