//! What every client does, whichever way its changes go.

use bson::{Document, doc};

use stepwell::app::ids;
use stepwell::proto;

/// Steps of an execution.
pub const STEPS: i32 = 10;
/// Size of an input or an output as BSON.
pub const PAYLOAD_BYTES: usize = 300;
/// What a document with one text of a six-letter name takes besides the text.
const AROUND: usize = 5 + 1 + 7 + 4 + 1;
pub const APP_NAME: &str = "stepwell-bench";
pub const STEP_NAME: &str = "call-model";
pub const USER_ID: &str = "bench";
const INPUT_KEY: &str = "prompt";
const OUTPUT_KEY: &str = "answer";

/// One change of the script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Create,
    Start(i32),
    Finish(i32),
    End,
}

/// Where a client is in its execution.
#[derive(Debug)]
pub struct Script {
    pub execution_id: String,
    /// The change to do next, from 0: Create, Start 1, Finish 1, ... End.
    next: i32,
}

impl Script {
    pub fn new() -> Self {
        Script { execution_id: ids::execution_id(), next: 0 }
    }

    pub fn change(&self) -> Change {
        match self.next {
            0 => Change::Create,
            next if next > 2 * STEPS => Change::End,
            next if next % 2 == 1 => Change::Start((next + 1) / 2),
            next => Change::Finish(next / 2),
        }
    }

    /// The change was done. After the last one a new execution begins.
    pub fn advance(&mut self) {
        match self.change() {
            Change::End => *self = Script::new(),
            _ => self.next += 1,
        }
    }

    /// Skips to the end of the execution. False if there is nothing to end.
    pub fn wind_up(&mut self) -> bool {
        if self.next == 0 {
            return false;
        }
        self.next = 2 * STEPS + 1;
        true
    }

    /// The change failed: its execution is left as it is.
    pub fn abandon(&mut self) {
        *self = Script::new();
    }
}

/// A text that differs between steps and does not compress into nothing.
pub fn text(execution_id: &str, step_id: i32, kind: char) -> String {
    let mut text = format!("{execution_id}/{step_id}{kind} ");
    // A small generator of letters, seeded by the ids: the same step has the same text in every attempt.
    let mut state = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    while text.len() < PAYLOAD_BYTES - AROUND {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        for shift in [33, 40, 47, 54] {
            let letter = u8::try_from((state >> shift) % 29).unwrap_or(0);
            text.push(if letter < 26 { char::from(b'a' + letter) } else { ' ' });
        }
    }
    text.truncate(PAYLOAD_BYTES - AROUND);
    text
}

pub fn input_document(execution_id: &str, step_id: i32) -> Document {
    doc! { INPUT_KEY: text(execution_id, step_id, 'i') }
}

pub fn output_document(execution_id: &str, step_id: i32) -> Document {
    doc! { OUTPUT_KEY: text(execution_id, step_id, 'o') }
}

fn object(key: &str, text: String) -> prost_types::Value {
    let text = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text)) };
    let fields = [(key.to_owned(), text)].into();
    prost_types::Value {
        kind: Some(prost_types::value::Kind::StructValue(prost_types::Struct { fields })),
    }
}

pub fn create_request(execution_id: &str) -> proto::CreateExecutionRequest {
    let model = prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue("bench".to_owned())),
    };
    proto::CreateExecutionRequest {
        execution_id: Some(execution_id.to_owned()),
        app_id: Some(1),
        app_name: APP_NAME.to_owned(),
        user_id: Some(USER_ID.to_owned()),
        metadata: Some(prost_types::Struct { fields: [("model".to_owned(), model)].into() }),
        ..Default::default()
    }
}

pub fn start_request(execution_id: &str, step_id: i32) -> proto::StartStepRequest {
    proto::StartStepRequest {
        execution_id: execution_id.to_owned(),
        step_id: Some(step_id),
        step_name: STEP_NAME.to_owned(),
        input: Some(object(INPUT_KEY, text(execution_id, step_id, 'i'))),
        ..Default::default()
    }
}

pub fn finish_request(execution_id: &str, step_id: i32) -> proto::FinishStepRequest {
    proto::FinishStepRequest {
        execution_id: execution_id.to_owned(),
        step_id: Some(step_id),
        status: proto::StepStatus::Completed.into(),
        output: Some(object(OUTPUT_KEY, text(execution_id, step_id, 'o'))),
        ..Default::default()
    }
}

pub fn end_request(execution_id: &str) -> proto::FinishExecutionRequest {
    proto::FinishExecutionRequest {
        execution_id: execution_id.to_owned(),
        status: proto::ExecutionStatus::Completed.into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_execution_is_22_changes_in_order() {
        let mut script = Script::new();
        let first = script.execution_id.clone();
        let mut changes = Vec::new();
        while script.execution_id == first {
            changes.push(script.change());
            script.advance();
        }
        assert_eq!(changes.len(), 22);
        assert_eq!(changes[..3], [Change::Create, Change::Start(1), Change::Finish(1)]);
        assert_eq!(changes[19..], [Change::Start(10), Change::Finish(10), Change::End]);
        assert_eq!(script.change(), Change::Create);
    }

    #[test]
    fn winding_up_ends_what_was_begun() {
        let mut script = Script::new();
        assert!(!script.wind_up());
        script.advance();
        assert!(script.wind_up());
        assert_eq!(script.change(), Change::End);
    }

    #[test]
    fn payloads_have_the_promised_size_and_are_the_same_both_ways() {
        let id = ids::execution_id();
        for step_id in [1, 10] {
            for document in [input_document(&id, step_id), output_document(&id, step_id)] {
                let bytes = stepwell::domain::value::size_of_document(&document);
                assert_eq!(bytes, PAYLOAD_BYTES);
            }
        }
        assert_ne!(text(&id, 1, 'i'), text(&id, 1, 'o'));
    }
}
