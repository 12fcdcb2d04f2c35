package dev.stepwell;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Value;
import dev.stepwell.v1.CreateExecutionRequest;
import dev.stepwell.v1.ExecutionStatus;
import dev.stepwell.v1.FinishExecutionRequest;
import dev.stepwell.v1.FinishStepRequest;
import dev.stepwell.v1.IngestRequest;
import dev.stepwell.v1.ListStepsRequest;
import dev.stepwell.v1.StartStepRequest;
import dev.stepwell.v1.StepServiceGrpc;
import dev.stepwell.v1.StepStatus;
import dev.stepwell.v1.WatchExecutionRequest;
import io.grpc.ManagedChannel;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthCheckResponse;
import io.grpc.health.v1.HealthGrpc;
import java.io.File;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/** Against a real server on an embedded store, which is killed and started again at the same address. */
@Timeout(120)
class StepwellTest {
  @TempDir Path data;
  private String address;
  private Process server;
  private ManagedChannel channel;

  @BeforeEach void connect() throws IOException {
    try (var socket = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      address = "127.0.0.1:" + socket.getLocalPort();
    }
    channel = Stepwell.channel(address).build();
  }

  @AfterEach void end() throws Exception {
    channel.shutdownNow();
    kill(true);
  }

  private void start() throws Exception {
    String binary = System.getenv("STEPWELL_BIN");
    assertNotNull(binary, "STEPWELL_BIN names no server");
    var command = new ProcessBuilder(binary, "serve", "--listen", address, "--data-dir", data.toString())
        .directory(data.toFile()).redirectErrorStream(true).redirectOutput(new File(data.toFile(), "log"));
    command.environment().keySet().removeIf(name -> name.startsWith("STEPWELL_"));
    server = command.start();
    ManagedChannel own = Stepwell.channel(address).build();
    try {
      var answer = HealthGrpc.newBlockingStub(own).withWaitForReady().withDeadlineAfter(60, TimeUnit.SECONDS)
          .check(HealthCheckRequest.getDefaultInstance());
      assertEquals(HealthCheckResponse.ServingStatus.SERVING, answer.getStatus());
    } finally {
      own.shutdownNow();
    }
  }

  private void kill(boolean hard) throws Exception {
    if (server != null) {
      if (hard) {
        server.destroyForcibly();
      } else {
        server.destroy();
      }
      server.waitFor();
      server = null;
    }
  }

  private static IngestRequest create(String id) {
    return IngestRequest.newBuilder()
        .setCreateExecution(CreateExecutionRequest.newBuilder().setExecutionId(id).setAppName("java")).build();
  }

  private static IngestRequest start(String id, String key, String name, String input) {
    return IngestRequest.newBuilder().setStartStep(StartStepRequest.newBuilder().setExecutionId(id).setStepKey(key)
        .setStepName(name).setInput(Value.newBuilder().setStringValue(input))).build();
  }

  private static IngestRequest finishStep(String id, String key) {
    return IngestRequest.newBuilder().setFinishStep(FinishStepRequest.newBuilder().setExecutionId(id).setStepKey(key)
        .setStatus(StepStatus.STEP_STATUS_COMPLETED)).build();
  }

  private static IngestRequest finish(String id) {
    return IngestRequest.newBuilder().setFinishExecution(FinishExecutionRequest.newBuilder().setExecutionId(id)
        .setStatus(ExecutionStatus.EXECUTION_STATUS_COMPLETED)).build();
  }

  private static WatchExecutionRequest watching(String id) {
    return WatchExecutionRequest.newBuilder().setExecutionId(id).setIncludeSteps(true).build();
  }

  private static Status.Code refusal(CompletableFuture<?> answer) {
    var error = assertThrows(ExecutionException.class, () -> answer.get(60, TimeUnit.SECONDS));
    return Status.fromThrowable(error.getCause()).getCode();
  }

  @Test void aRunIsReportedAndWatched() throws Exception {
    start();
    String run = UUID.randomUUID().toString();
    List<String> seen = new ArrayList<>();
    var writer = new Stepwell.Writer(channel);
    writer.write(create(run)).get(60, TimeUnit.SECONDS);
    try (var watch = Stepwell.watch(channel, watching(run))) {
      for (var event : watch) {
        switch (event.kind()) {
          case LIVE -> {
            seen.add("live");
            writer.write(start(run, "fetch", "fetch", ""));
            writer.write(finishStep(run, "fetch"));
            writer.write(finish(run));
            writer.close();
          }
          case STEP -> {
            if (event.step().getStep().getStatus() == StepStatus.STEP_STATUS_COMPLETED) {
              seen.add("step");
            }
          }
          default -> seen.add(event.execution().getExecution().getStatus().name());
        }
      }
    }
    assertEquals(List.of("EXECUTION_STATUS_RUNNING", "live", "step", "EXECUTION_STATUS_COMPLETED"), seen);
    assertThrows(IllegalStateException.class, () -> writer.write(create("after the end")));
  }

  @Test void nothingIsLostOrDoubledWhenTheServerIsKilledBetweenWrites() throws Exception {
    start();
    String run = UUID.randomUUID().toString();
    int steps = 200;
    List<CompletableFuture<?>> answers = new ArrayList<>();
    Set<String> completed = new HashSet<>();
    try (var writer = new Stepwell.Writer(channel)) {
      writer.write(create(run)).get(60, TimeUnit.SECONDS);
      var watched = CompletableFuture.runAsync(() -> {
        try (var watch = Stepwell.watch(channel, watching(run))) {
          for (var event : watch) {
            if (event.kind() == Stepwell.Kind.RESET) {
              completed.clear();
            } else if (event.kind() == Stepwell.Kind.STEP
                && event.step().getStep().getStatus() == StepStatus.STEP_STATUS_COMPLETED) {
              completed.add(event.step().getStep().getStepKey());
            }
          }
        }
      });
      for (int i = 0; i < steps; i++) {
        answers.add(writer.write(start(run, "step-" + i, "work", "")));
        answers.add(writer.write(finishStep(run, "step-" + i)));
        if (i % 50 == 25) {
          kill(i != 125);
          start();
        }
      }
      answers.add(writer.write(finish(run)));
      for (var answer : answers) {
        answer.get(60, TimeUnit.SECONDS);
      }
      watched.get(60, TimeUnit.SECONDS);
    }
    assertEquals(steps, completed.size());
    var page = StepServiceGrpc.newBlockingStub(channel)
        .listSteps(ListStepsRequest.newBuilder().setExecutionId(run).setPageSize(1000).build());
    assertEquals(steps, page.getStepsCount());
    for (var step : page.getStepsList()) {
      assertEquals(0, step.getRetryCount());
      assertEquals(StepStatus.STEP_STATUS_COMPLETED, step.getStatus());
    }
  }

  @Test void aServerThatIsAwayAtFirstIsWaitedFor() throws Exception {
    try (var writer = new Stepwell.Writer(channel)) {
      var answer = writer.write(create("waiting"));
      assertThrows(TimeoutException.class, () -> answer.get(300, TimeUnit.MILLISECONDS));
      assertFalse(writer.flush(Duration.ofMillis(1)));
      assertEquals(Status.Code.UNAVAILABLE, Status.fromThrowable(writer.lastError()).getCode());
      start();
      assertEquals("waiting", answer.get(60, TimeUnit.SECONDS).getExecution().getExecutionId());
      assertTrue(writer.flush(Duration.ofSeconds(10)));
    }
  }

  @Test void aRefusedWriteHoldsNothingUp() throws Exception {
    start();
    try (var writer = new Stepwell.Writer(channel)) {
      writer.write(create("run"));
      var bad = writer.write(start("run", "bad", "", ""));
      var unknown = writer.write(finishStep("run", "nobody"));
      var large = writer.write(start("run", "large", "large", "x".repeat(17 << 20)));
      var good = writer.write(start("run", "good", "good", ""));
      assertEquals("good", good.get(60, TimeUnit.SECONDS).getStep().getStepKey());
      assertEquals(Status.Code.INVALID_ARGUMENT, refusal(bad));
      assertEquals(Status.Code.NOT_FOUND, refusal(unknown));
      assertEquals(Status.Code.INVALID_ARGUMENT, refusal(large));
      unknown.handle((answer, error) -> {
        assertEquals("STEP_NOT_FOUND", Stepwell.reason(error));
        return null;
      }).get();
    }
  }

  @Test void aWatchBeginsAnewWhereItsTokenHasExpired() throws Exception {
    start();
    List<String> seen = new ArrayList<>();
    try (var writer = new Stepwell.Writer(channel)) {
      writer.write(create("run")).get(60, TimeUnit.SECONDS);
      int lives = 0;
      for (var event : Stepwell.watch(channel, watching("run"))) {
        switch (event.kind()) {
          case RESET -> seen.add("reset");
          case LIVE -> {
            seen.add("live");
            if (++lives == 1) {
              kill(false);
              forgetHistory();
              start();
            } else {
              writer.write(finish("run"));
            }
          }
          default -> seen.add(event.execution().getExecution().getStatus().name());
        }
      }
    }
    assertEquals(List.of("EXECUTION_STATUS_RUNNING", "live", "reset", "EXECUTION_STATUS_RUNNING", "live",
        "EXECUTION_STATUS_COMPLETED"), seen);
  }

  /** What the server does by itself when its table of changes is full or old. */
  private void forgetHistory() throws Exception {
    try (var files = Files.newDirectoryStream(data, "*.db")) {
      String script = """
          import sqlite3, sys
          db = sqlite3.connect(sys.argv[1])
          db.execute("UPDATE meta SET value = (SELECT max(seq) + 1 FROM changes) WHERE name = 'pruned_through'")
          db.execute("DELETE FROM changes")
          db.commit()
          """;
      var python = new ProcessBuilder("python3", "-c", script, files.iterator().next().toString()).inheritIO().start();
      assertEquals(0, python.waitFor());
    }
  }

  @Test void aWatchOfWhatThereIsNotSaysSo() throws Exception {
    start();
    var watch = Stepwell.watch(channel, watching("nobody"));
    var error = assertThrows(StatusRuntimeException.class, watch::hasNext);
    assertEquals(Status.Code.NOT_FOUND, error.getStatus().getCode());
    assertEquals("EXECUTION_NOT_FOUND", Stepwell.reason(error));
  }

  @Test void aWatchIsClosedFromAnotherThread() throws Exception {
    start();
    try (var writer = new Stepwell.Writer(channel)) {
      writer.write(create("run")).get(60, TimeUnit.SECONDS);
      var watch = Stepwell.watch(channel, watching("run"));
      var live = new CompletableFuture<Void>();
      var ended = CompletableFuture.runAsync(() -> {
        for (var event : watch) {
          if (event.kind() == Stepwell.Kind.LIVE) {
            live.complete(null);
          }
        }
      });
      live.get(60, TimeUnit.SECONDS);
      watch.close();
      ended.get(60, TimeUnit.SECONDS);
    }
  }
}
