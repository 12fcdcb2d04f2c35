// A run with one step, with stubs alone: docs/clients.md has the commands.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
	pb "stepwell.dev/go/stepwellv1"
)

func main() {
	target := cmp.Or(os.Getenv("STEPWELL_SERVER"), "127.0.0.1:50051")
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	ctx := context.Background()
	executions, steps := pb.NewExecutionServiceClient(conn), pb.NewStepServiceClient(conn)

	created, err := executions.CreateExecution(ctx, &pb.CreateExecutionRequest{AppName: "hello"})
	if err != nil {
		log.Fatal(err)
	}
	run := created.Execution.ExecutionId
	started, err := steps.StartStep(ctx, &pb.StartStepRequest{
		ExecutionId: run, StepName: "fetch", Input: object("url", "https://example.org"),
	})
	if err != nil {
		log.Fatal(err)
	}
	ended, err := steps.FinishStep(ctx, &pb.FinishStepRequest{
		ExecutionId: run, StepId: started.Step.StepId,
		Status: pb.StepStatus_STEP_STATUS_COMPLETED, Output: object("bytes", 1256),
	})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := executions.FinishExecution(ctx, &pb.FinishExecutionRequest{
		ExecutionId: run, Status: pb.ExecutionStatus_EXECUTION_STATUS_COMPLETED,
	}); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("step %d %s: %v\n", ended.Step.GetStepId(), ended.Step.StepName, ended.Step.Status)
}

func object(key string, value any) *structpb.Value {
	made, err := structpb.NewValue(map[string]any{key: value})
	if err != nil {
		log.Fatal(err)
	}
	return made
}
