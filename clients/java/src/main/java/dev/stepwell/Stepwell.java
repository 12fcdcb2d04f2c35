package dev.stepwell;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.protobuf.Timestamp;
import com.google.protobuf.util.Durations;
import com.google.protobuf.util.Timestamps;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.stepwell.v1.ArtifactChange;
import dev.stepwell.v1.ChangeType;
import dev.stepwell.v1.Execution;
import dev.stepwell.v1.ExecutionChange;
import dev.stepwell.v1.ExecutionServiceGrpc;
import dev.stepwell.v1.IngestRequest;
import dev.stepwell.v1.IngestResponse;
import dev.stepwell.v1.IngestServiceGrpc;
import dev.stepwell.v1.MetricsRecorded;
import dev.stepwell.v1.Step;
import dev.stepwell.v1.StepChange;
import dev.stepwell.v1.WatchExecutionRequest;
import dev.stepwell.v1.WatchExecutionResponse;
import dev.stepwell.v1.WatchExecutionsRequest;
import io.grpc.Channel;
import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.NoSuchElementException;
import java.util.Optional;
import java.util.UUID;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * What a Java program needs beside the generated stubs of {@code dev.stepwell.v1}: a channel with the right settings, a
 * watch that reconnects, and a writer that sends again what was not answered.
 *
 * <pre>{@code
 * ManagedChannel channel = Stepwell.channel("127.0.0.1:50051").build();
 * try (var writer = new Stepwell.Writer(channel)) {
 *   String run = UUID.randomUUID().toString();
 *   writer.write(IngestRequest.newBuilder().setCreateExecution(
 *       CreateExecutionRequest.newBuilder().setExecutionId(run).setAppName("hello")).build());
 *   try (var watch = Stepwell.watch(channel, WatchExecutionRequest.newBuilder().setExecutionId(run).build())) {
 *     for (var event : watch) { ... }
 *   }
 * }
 * }</pre>
 */
public final class Stepwell {
  private Stepwell() {}

  /**
   * A channel with the settings that Stepwell wants: pings, so that a dead connection is found within 40 seconds, room for
   * the largest replies, and retries of unary calls while the server is away. Streams are not retried here: {@link Watch}
   * and {@link Writer} resume them themselves. It is not encrypted; for TLS make a builder of your own.
   */
  public static ManagedChannelBuilder<?> channel(String target) {
    return Grpc.newChannelBuilder(target, InsecureChannelCredentials.create())
        .keepAliveTime(30, TimeUnit.SECONDS)
        .keepAliveTimeout(10, TimeUnit.SECONDS)
        .maxInboundMessageSize(8 << 20)
        .defaultServiceConfig(SERVICE_CONFIG)
        .enableRetry();
  }

  private static final Map<String, ?> SERVICE_CONFIG = Map.of("methodConfig", List.of(
      Map.of(
          "name", List.of(
              Map.of("service", "stepwell.v1.ExecutionService"), Map.of("service", "stepwell.v1.StepService"),
              Map.of("service", "stepwell.v1.MetricService"), Map.of("service", "stepwell.v1.ConfigurationService"),
              Map.of("service", "stepwell.v1.AnalyticsService"), Map.of("service", "stepwell.v1.SearchService")),
          "retryPolicy", Map.of("maxAttempts", 5.0, "initialBackoff", "0.1s", "maxBackoff", "5s",
              "backoffMultiplier", 2.0, "retryableStatusCodes", List.of("UNAVAILABLE"))),
      Map.of("name", List.of(
          Map.of("service", "stepwell.v1.ExecutionService", "method", "WatchExecution"),
          Map.of("service", "stepwell.v1.ExecutionService", "method", "WatchExecutions")))));

  // ---- what an error asks for ------------------------------------------------------------------------------------

  private static <T extends Message> Optional<T> detail(com.google.rpc.Status status, Class<T> kind) {
    for (Any any : status.getDetailsList()) {
      if (any.is(kind)) {
        try {
          return Optional.of(any.unpack(kind));
        } catch (InvalidProtocolBufferException broken) {
          return Optional.empty();
        }
      }
    }
    return Optional.empty();
  }

  private static com.google.rpc.Status statusOf(Throwable error) {
    com.google.rpc.Status status = StatusProto.fromThrowable(error);
    return status == null ? com.google.rpc.Status.newBuilder().setCode(Status.fromThrowable(error).getCode().value()).build() : status;
  }

  /** The stable reason of an error of Stepwell, such as {@code STALE_REVISION}; empty for other errors. */
  public static String reason(Throwable error) {
    return reason(statusOf(error));
  }

  private static String reason(com.google.rpc.Status status) {
    return detail(status, ErrorInfo.class).filter(info -> info.getDomain().equals("stepwell"))
        .map(ErrorInfo::getReason).orElse("");
  }

  /** When the server wants the call once more; empty: it does not say that it does. */
  private static Optional<Duration> retryAfter(com.google.rpc.Status status) {
    return detail(status, RetryInfo.class).map(info -> Duration.ofMillis(Durations.toMillis(info.getRetryDelay())));
  }

  /** 0.1 s, doubling to 5 s, with jitter. */
  private static final class Backoff {
    private long next = 100;

    synchronized void reset() {
      next = 100;
    }

    synchronized long millis(Duration least) {
      long wait = next / 2 + ThreadLocalRandom.current().nextLong(next / 2);
      next = Math.min(2 * next, 5_000);
      return Math.max(least.toMillis(), wait);
    }
  }

  // ---- watching --------------------------------------------------------------------------------------------------

  /** What an event of a watch says. */
  public enum Kind {
    /** An execution changed, or is part of the current state. */
    EXECUTION,
    /** A step changed, or is part of the current state. */
    STEP,
    /** An artifact changed, or is part of the current state. */
    ARTIFACT,
    /** Metrics were recorded. */
    METRICS,
    /** The current state has been sent; what follows are changes. */
    LIVE,
    /** History did not reach back to where the watch was: what was known is void, and the current state follows. */
    RESET
  }

  /**
   * One event of a watch; only the field of its kind is set. The token resumes after it, with any server of the cluster;
   * it is empty in events of the current state.
   */
  public record Event(
      Kind kind, String token, ExecutionChange execution, StepChange step, ArtifactChange artifact, MetricsRecorded metrics) {}

  /**
   * Watches one execution until it has ended, or until the watch is closed. It reconnects for ever, with the last token,
   * and begins anew ({@link Kind#RESET}) where the token has expired. A record older than one that was delivered is
   * dropped; one with an equal revision is passed on, since other programs change records without changing the revision.
   * {@code hasNext} throws StatusRuntimeException for an error that no repetition mends.
   */
  public static Watch watch(Channel channel, WatchExecutionRequest request) {
    var stub = ExecutionServiceGrpc.newBlockingStub(channel);
    return new Watch(request.getResumeToken(),
        token -> stub.watchExecution(request.toBuilder().setResumeToken(token).build()));
  }

  /** Watches all executions that match a filter, until it is closed; in everything else as {@link #watch}. */
  public static Watch watchAll(Channel channel, WatchExecutionsRequest request) {
    var stub = ExecutionServiceGrpc.newBlockingStub(channel);
    return new Watch(request.getResumeToken(), token -> {
      var events = stub.watchExecutions(request.toBuilder().setResumeToken(token).build());
      return new Iterator<>() {
        @Override public boolean hasNext() {
          return events.hasNext();
        }

        @Override public WatchExecutionResponse next() {
          try { // The two are the same on the wire.
            return WatchExecutionResponse.parseFrom(events.next().toByteString());
          } catch (InvalidProtocolBufferException impossible) {
            throw new IllegalStateException(impossible);
          }
        }
      };
    });
  }

  /** A watch under way: iterate over it, once, in one thread; any thread may close it. */
  public static final class Watch implements Iterable<Event>, Iterator<Event>, AutoCloseable {
    private interface Opener {
      Iterator<WatchExecutionResponse> open(String token);
    }

    private static final int REMEMBERED = 1 << 16;

    private final Opener opener;
    private final Context.CancellableContext context = Context.current().withCancellation();
    private final Backoff backoff = new Backoff();
    private final LinkedHashMap<String, Long> seen = new LinkedHashMap<>(16, 0.75f, true) {
      @Override protected boolean removeEldestEntry(Map.Entry<String, Long> eldest) {
        return size() > REMEMBERED;
      }
    };
    private String token;
    private Iterator<WatchExecutionResponse> stream;
    private boolean delivered;
    private boolean ended;
    private Event next;

    private Watch(String token, Opener opener) {
      this.token = token;
      this.opener = opener;
    }

    @Override public Iterator<Event> iterator() {
      return this;
    }

    @Override public Event next() {
      if (!hasNext()) {
        throw new NoSuchElementException();
      }
      Event event = next;
      next = null;
      return event;
    }

    @Override public boolean hasNext() {
      while (next == null && !ended) {
        if (context.isCancelled()) {
          ended = true;
          break;
        }
        try {
          if (stream == null) {
            stream = context.call(() -> opener.open(token));
          }
          if (stream.hasNext()) {
            backoff.reset();
            next = take(stream.next());
          } else {
            ended = true; // The execution has ended, and so has the watch.
          }
        } catch (StatusRuntimeException error) {
          again(error);
        } catch (RuntimeException error) {
          throw error;
        } catch (Exception impossible) {
          throw new IllegalStateException(impossible);
        }
      }
      return next != null;
    }

    /** Prepares another try, or throws. */
    private void again(StatusRuntimeException error) {
      stream = null;
      if (context.isCancelled()) {
        return;
      }
      var status = statusOf(error);
      var after = retryAfter(status);
      switch (error.getStatus().getCode()) {
        case OUT_OF_RANGE -> token = "";
        case RESOURCE_EXHAUSTED -> {
          if (after.isEmpty()) { // Our own limit: it would fail again.
            ended = true;
            throw error;
          }
        }
        case UNAVAILABLE, ABORTED, INTERNAL, UNKNOWN, CANCELLED, DEADLINE_EXCEEDED -> {}
        default -> {
          ended = true;
          throw error;
        }
      }
      var over = new CompletableFuture<Void>();
      Context.CancellationListener wake = cancelled -> over.complete(null);
      context.addListener(wake, Runnable::run);
      try {
        over.get(backoff.millis(after.orElse(Duration.ZERO)), TimeUnit.MILLISECONDS);
      } catch (TimeoutException waited) {
        // Try again.
      } catch (InterruptedException interrupted) {
        Thread.currentThread().interrupt();
        close();
      } catch (java.util.concurrent.ExecutionException impossible) {
        throw new IllegalStateException(impossible);
      } finally {
        context.removeListener(wake);
      }
      if (token.isEmpty() && delivered) {
        seen.clear();
        delivered = false;
        next = new Event(Kind.RESET, "", null, null, null, null);
      }
    }

    /** What an event is for the caller; null: nothing. */
    private Event take(WatchExecutionResponse event) {
      if (!event.getResumeToken().isEmpty()) {
        token = event.getResumeToken();
      }
      Event taken = switch (event.getEventCase()) {
        case EXECUTION -> {
          Execution execution = event.getExecution().getExecution();
          yield passes(execution.getExecutionId(), event.getExecution().getChangeType(), execution.getRevision())
              ? new Event(Kind.EXECUTION, event.getResumeToken(), event.getExecution(), null, null, null) : null;
        }
        case STEP -> {
          Step step = event.getStep().getStep();
          yield passes(step.getExecutionId() + "/" + step.getStepId(), event.getStep().getChangeType(), step.getRevision())
              ? new Event(Kind.STEP, event.getResumeToken(), null, event.getStep(), null, null) : null;
        }
        case ARTIFACT -> new Event(Kind.ARTIFACT, event.getResumeToken(), null, null, event.getArtifact(), null);
        case METRICS -> new Event(Kind.METRICS, event.getResumeToken(), null, null, null, event.getMetrics());
        case SNAPSHOT_COMPLETE -> new Event(Kind.LIVE, event.getResumeToken(), null, null, null, null);
        default -> null; // A keepalive; its token is kept.
      };
      delivered |= taken != null;
      return taken;
    }

    private boolean passes(String record, ChangeType change, long revision) {
      if (change == ChangeType.CHANGE_TYPE_DELETED) {
        seen.remove(record);
        return true;
      }
      Long known = seen.get(record);
      if (known != null && revision < known) {
        return false;
      }
      seen.put(record, revision);
      return true;
    }

    /** Ends the watch. */
    @Override public void close() {
      context.cancel(null);
    }
  }

  // ---- writing ---------------------------------------------------------------------------------------------------

  /**
   * Sends writes over one Ingest stream and sends again, in their order and over a new stream, what was not answered: after
   * the stream has ended, and after an answer that asks for it. It keeps them in memory, so what is not answered when the
   * program ends may be lost. Safe for any number of threads.
   */
  public static final class Writer implements AutoCloseable {
    private static final int MAX_PENDING = 10_000;
    private static final long MAX_PENDING_BYTES = 64L << 20;

    private static final class Pending {
      final IngestRequest request;
      final long size;
      final CompletableFuture<IngestResponse> answer = new CompletableFuture<>();

      Pending(IngestRequest request) {
        this.request = request;
        this.size = request.getSerializedSize() + 16L;
      }
    }

    private final IngestServiceGrpc.IngestServiceStub stub;
    private final Backoff backoff = new Backoff();
    private final Thread thread;
    // Guarded by this:
    private final List<Pending> queue = new ArrayList<>(); // not answered, in order
    private int sent; // so many of them were sent over the stream that is open
    private long bytes;
    private long sequence;
    private long updates;
    private boolean closed;
    private Throwable last;

    /** Makes a writer; it connects with the first write. */
    public Writer(Channel channel) {
      stub = IngestServiceGrpc.newStub(channel);
      thread = new Thread(this::run, "stepwell-writer");
      thread.setDaemon(true);
      thread.start();
    }

    /**
     * Queues a write; the answer comes once it is durable, or the error with which it was refused for good. Its sequence is
     * set, and what makes it safe to send again is filled in where it is missing: ids of executions and keys of steps,
     * times, request_id of points and update_sequence. Waits only while 10,000 writes or 64 MiB have no answer yet.
     */
    public synchronized CompletableFuture<IngestResponse> write(IngestRequest request) throws InterruptedException {
      var pending = new Pending(complete(request).setSequence(++sequence).build());
      while (!closed && !queue.isEmpty() && (queue.size() >= MAX_PENDING || bytes + pending.size > MAX_PENDING_BYTES)) {
        wait();
      }
      if (closed) {
        throw new IllegalStateException("the writer is closed");
      }
      queue.add(pending);
      bytes += pending.size;
      notifyAll();
      return pending.answer;
    }

    /** Fills in what makes a write safe to repeat, and keeps its time where it arrives late. */
    private IngestRequest.Builder complete(IngestRequest request) {
      var write = request.toBuilder();
      Timestamp now = Timestamps.fromMillis(System.currentTimeMillis());
      switch (write.getWriteCase()) {
        case CREATE_EXECUTION -> {
          var create = write.getCreateExecutionBuilder();
          if (!create.hasExecutionId()) {
            create.setExecutionId(UUID.randomUUID().toString());
          }
          if (!create.hasStartedAt()) {
            create.setStartedAt(now);
          }
        }
        case FINISH_EXECUTION -> {
          if (!write.getFinishExecution().hasCompletedAt()) {
            write.getFinishExecutionBuilder().setCompletedAt(now);
          }
        }
        case UPDATE_EXECUTION -> {
          if (!write.getUpdateExecution().hasUpdateSequence()) {
            write.getUpdateExecutionBuilder().setUpdateSequence(nextUpdate());
          }
        }
        case START_STEP -> {
          var start = write.getStartStepBuilder();
          if (!start.hasStepId() && !start.hasStepKey()) {
            start.setStepKey(UUID.randomUUID().toString());
          }
          if (!start.hasAttempt()) {
            start.setAttempt(1);
          }
          if (!start.hasStartedAt()) {
            start.setStartedAt(now);
          }
        }
        case UPDATE_STEP -> {
          if (!write.getUpdateStep().hasUpdateSequence()) {
            write.getUpdateStepBuilder().setUpdateSequence(nextUpdate());
          }
        }
        case FINISH_STEP -> {
          if (!write.getFinishStep().hasCompletedAt()) {
            write.getFinishStepBuilder().setCompletedAt(now);
          }
        }
        case RECORD_METRICS -> {
          if (!write.getRecordMetrics().hasRequestId()) {
            write.getRecordMetricsBuilder().setRequestId(UUID.randomUUID().toString());
          }
        }
        default -> {}
      }
      return write;
    }

    private long nextUpdate() {
      updates = Math.max(updates + 1, System.currentTimeMillis() * 1000);
      return updates;
    }

    /** Waits until everything written so far is answered. False: it was not within this time. */
    public boolean flush(Duration within) throws InterruptedException {
      List<Pending> waiting;
      synchronized (this) {
        waiting = List.copyOf(queue);
      }
      long end = System.nanoTime() + within.toNanos();
      for (Pending pending : waiting) {
        try {
          pending.answer.get(Math.max(0, end - System.nanoTime()), TimeUnit.NANOSECONDS);
        } catch (TimeoutException late) {
          return false;
        } catch (java.util.concurrent.ExecutionException | CancellationException refused) {
          // Whoever wrote it is told.
        }
      }
      return true;
    }

    /** Flushes for at most five seconds, and ends the writer. What is not answered then fails. */
    @Override public void close() throws InterruptedException {
      flush(Duration.ofSeconds(5));
      synchronized (this) {
        closed = true;
        notifyAll();
      }
      thread.join();
    }

    /** Why the last stream ended; null while the writer is connected. */
    public synchronized Throwable lastError() {
      return last;
    }

    private void run() {
      try {
        while (true) {
          synchronized (this) {
            while (queue.isEmpty() && !closed) {
              wait();
            }
            sent = 0;
            if (closed) {
              queue.forEach(p -> p.answer.completeExceptionally(new IllegalStateException("the writer is closed")));
              queue.clear();
              return;
            }
          }
          var over = new Stream().run();
          long pause = backoff.millis(after(over));
          synchronized (this) {
            long end = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(pause);
            for (long left = pause; !closed && left > 0; left = TimeUnit.NANOSECONDS.toMillis(end - System.nanoTime())) {
              wait(left);
            }
          }
        }
      } catch (InterruptedException interrupted) {
        synchronized (this) {
          closed = true;
          queue.forEach(p -> p.answer.completeExceptionally(interrupted));
          queue.clear();
          notifyAll();
        }
      }
    }

    /** Judges the end of a stream: what is refused for good, and how long to wait. */
    private synchronized Duration after(Stream over) {
      last = over.error;
      if (over.error == null) {
        return over.after;
      }
      var status = statusOf(over.error);
      Status.Code code = Status.fromThrowable(over.error).getCode();
      if (reason(status).equals("BAD_MESSAGE")) {
        // It names the last message that could be read: the one after it never can be.
        long read = Long.parseLong(detail(status, ErrorInfo.class).orElseThrow().getMetadataOrDefault("last_sequence", "0"));
        queue.stream().filter(p -> p.request.getSequence() > read).findFirst().ifPresent(p -> {
          forget(p);
          p.answer.completeExceptionally(over.error);
        });
      } else if (code == Status.Code.UNIMPLEMENTED) {
        for (Pending pending : List.copyOf(queue)) {
          forget(pending);
          pending.answer.completeExceptionally(over.error);
        }
      }
      Duration least = code == Status.Code.UNAUTHENTICATED || code == Status.Code.PERMISSION_DENIED
          ? Duration.ofSeconds(30) : over.after;
      Duration said = retryAfter(status).orElse(Duration.ZERO);
      return said.compareTo(least) > 0 ? said : least;
    }

    /** Takes an answered write out of the queue. Synchronized by the caller. */
    private void forget(Pending pending) {
      int at = queue.indexOf(pending);
      queue.remove(at);
      if (at < sent) {
        sent--;
      }
      bytes -= pending.size;
      notifyAll();
    }

    /** One stream: sends and receives until it has ended, or until an answer asks for a new one. */
    private final class Stream implements ClientResponseObserver<IngestRequest, IngestResponse> {
      private ClientCallStreamObserver<IngestRequest> requests;
      private boolean over; // nothing more is sent over this stream
      private boolean ended;
      private long drainUntil;
      Throwable error;
      Duration after = Duration.ZERO;

      Stream run() throws InterruptedException {
        stub.ingest(this);
        while (true) {
          IngestRequest next = null;
          synchronized (Writer.this) {
            while (!ended && !over && !closed && (sent == queue.size() || !requests.isReady())) {
              Writer.this.wait();
            }
            if (ended) {
              return this;
            }
            if (!over && !closed) {
              next = queue.get(sent++).request;
            }
          }
          if (next == null) {
            break;
          }
          requests.onNext(next);
        }
        requests.onCompleted();
        synchronized (Writer.this) {
          drainUntil = System.nanoTime() + TimeUnit.SECONDS.toNanos(15);
          for (long left = 15_000; !ended && !closed && left > 0;
              left = TimeUnit.NANOSECONDS.toMillis(drainUntil - System.nanoTime())) {
            Writer.this.wait(left);
          }
          if (ended) {
            return this;
          }
        }
        requests.cancel("the answers do not come", null);
        return this;
      }

      @Override public void beforeStart(ClientCallStreamObserver<IngestRequest> observer) {
        requests = observer;
        observer.setOnReadyHandler(() -> {
          synchronized (Writer.this) {
            Writer.this.notifyAll();
          }
        });
      }

      @Override public void onNext(IngestResponse answer) {
        Pending pending = null;
        synchronized (Writer.this) {
          last = null;
          if (answer.hasError()) {
            var wait = retryAfter(answer.getError());
            if (wait.isPresent() || reason(answer.getError()).equals("EARLIER_WRITE_FAILED")) {
              // It stays in the queue. What is under way is still answered; then a new stream begins.
              over = true;
              after = wait.filter(w -> w.compareTo(after) > 0).orElse(after);
              Writer.this.notifyAll();
              return;
            }
          }
          for (Pending candidate : queue.subList(0, sent)) {
            if (candidate.request.getSequence() == answer.getSequence()) {
              pending = candidate;
              break;
            }
          }
          if (pending == null) {
            return;
          }
          forget(pending);
          backoff.reset();
        }
        if (answer.hasError()) {
          pending.answer.completeExceptionally(StatusProto.toStatusRuntimeException(answer.getError()));
        } else {
          pending.answer.complete(answer);
        }
      }

      @Override public void onError(Throwable failure) {
        synchronized (Writer.this) {
          ended = true;
          error = failure;
          Writer.this.notifyAll();
        }
      }

      @Override public void onCompleted() {
        synchronized (Writer.this) {
          ended = true;
          Writer.this.notifyAll();
        }
      }
    }
  }
}
