import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import dev.stepwell.v1.*;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;

/** A run with one step, with stubs alone: docs/clients.md has the commands. */
public class FirstStep {
  public static void main(String[] arguments) {
    String target = System.getenv().getOrDefault("STEPWELL_SERVER", "127.0.0.1:50051");
    ManagedChannel channel = Grpc.newChannelBuilder(target, InsecureChannelCredentials.create()).build();
    var executions = ExecutionServiceGrpc.newBlockingStub(channel);
    var steps = StepServiceGrpc.newBlockingStub(channel);

    String run = executions.createExecution(CreateExecutionRequest.newBuilder().setAppName("hello").build())
        .getExecution().getExecutionId();
    Step started = steps.startStep(StartStepRequest.newBuilder().setExecutionId(run).setStepName("fetch")
        .setInput(object("url", Value.newBuilder().setStringValue("https://example.org").build())).build()).getStep();
    Step ended = steps.finishStep(FinishStepRequest.newBuilder().setExecutionId(run).setStepId(started.getStepId())
        .setStatus(StepStatus.STEP_STATUS_COMPLETED)
        .setOutput(object("bytes", Value.newBuilder().setNumberValue(1256).build())).build()).getStep();
    executions.finishExecution(FinishExecutionRequest.newBuilder().setExecutionId(run)
        .setStatus(ExecutionStatus.EXECUTION_STATUS_COMPLETED).build());
    System.out.println("step " + ended.getStepId() + " " + ended.getStepName() + ": " + ended.getStatus());
    channel.shutdownNow();
  }

  private static Value object(String key, Value value) {
    return Value.newBuilder().setStructValue(Struct.newBuilder().putFields(key, value)).build();
  }
}
