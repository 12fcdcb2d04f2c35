//! Records as lists, watches and answers to writes send them: no larger than clients take by default. What is too large
//! is left out and named. Calls that ask for one record send it whole.

use prost::Message;

use super::{convert, records};
use crate::domain;
use crate::domain::limits::RECORD_BYTES;
use crate::proto;

/// A field that may be left out.
struct Part<M> {
    name: &'static str,
    /// Its encoded bytes; 0: there is nothing to leave out.
    size: fn(&M) -> usize,
    omit: fn(&mut M),
}

/// A kind of record that loses its largest fields rather than being too large.
trait Shown: Message + Sized + 'static {
    const PARTS: &'static [Part<Self>];

    fn omitted_fields(&mut self) -> &mut Vec<String>;
}

/// The record, without the fields that make it too large.
fn fitted<M: Shown>(record: M) -> M {
    fitted_to(RECORD_BYTES, record)
}

fn fitted_to<M: Shown>(bytes: usize, mut record: M) -> M {
    while record.encoded_len() > bytes {
        let largest = M::PARTS.iter().max_by_key(|part| (part.size)(&record));
        let Some(part) = largest.filter(|part| (part.size)(&record) > 0) else { break };
        (part.omit)(&mut record);
        record.omitted_fields().push(part.name.to_owned());
    }
    record
}

fn length(message: Option<&impl Message>) -> usize {
    message.map_or(0, Message::encoded_len)
}

fn text(text: Option<&String>) -> usize {
    text.map_or(0, String::len)
}

fn details(error: Option<&proto::Error>) -> usize {
    length(error.and_then(|error| error.details.as_ref()))
}

fn stack_trace(error: Option<&proto::Error>) -> usize {
    error.map_or(0, |error| error.stack_trace.len())
}

fn rest_of_error(error: Option<&proto::Error>) -> usize {
    error.map_or(0, |error| error.message.len() + error.code.len())
}

fn without_details(error: &mut Option<proto::Error>) {
    if let Some(error) = error {
        error.details = None;
    }
}

fn without_stack_trace(error: &mut Option<proto::Error>) {
    if let Some(error) = error {
        error.stack_trace.clear();
    }
}

impl Shown for proto::Execution {
    const PARTS: &'static [Part<Self>] = &[
        Part {
            name: "metadata",
            size: |r| length(r.metadata.as_ref()),
            omit: |r| r.metadata = None,
        },
        Part {
            name: "error.details",
            size: |r| details(r.error.as_ref()),
            omit: |r| without_details(&mut r.error),
        },
        Part {
            name: "error.stack_trace",
            size: |r| stack_trace(r.error.as_ref()),
            omit: |r| without_stack_trace(&mut r.error),
        },
        Part { name: "error", size: |r| rest_of_error(r.error.as_ref()), omit: |r| r.error = None },
        Part { name: "app_name", size: |r| r.app_name.len(), omit: |r| r.app_name.clear() },
        Part {
            name: "sub_app_name",
            size: |r| text(r.sub_app_name.as_ref()),
            omit: |r| r.sub_app_name = None,
        },
        Part { name: "user_id", size: |r| text(r.user_id.as_ref()), omit: |r| r.user_id = None },
        Part {
            name: "cancel_reason",
            size: |r| text(r.cancel_reason.as_ref()),
            omit: |r| r.cancel_reason = None,
        },
        Part {
            name: "parent_execution_id",
            size: |r| text(r.parent_execution_id.as_ref()),
            omit: |r| r.parent_execution_id = None,
        },
        Part {
            name: "configuration_version",
            size: |r| text(r.configuration_version.as_ref()),
            omit: |r| r.configuration_version = None,
        },
    ];

    fn omitted_fields(&mut self) -> &mut Vec<String> {
        &mut self.omitted_fields
    }
}

impl Shown for proto::Step {
    const PARTS: &'static [Part<Self>] = &[
        Part { name: "output", size: |r| length(r.output.as_ref()), omit: |r| r.output = None },
        Part { name: "input", size: |r| length(r.input.as_ref()), omit: |r| r.input = None },
        Part {
            name: "metadata",
            size: |r| length(r.metadata.as_ref()),
            omit: |r| r.metadata = None,
        },
        Part {
            name: "error.details",
            size: |r| details(r.error.as_ref()),
            omit: |r| without_details(&mut r.error),
        },
        Part {
            name: "error.stack_trace",
            size: |r| stack_trace(r.error.as_ref()),
            omit: |r| without_stack_trace(&mut r.error),
        },
        Part { name: "error", size: |r| rest_of_error(r.error.as_ref()), omit: |r| r.error = None },
        Part {
            name: "attempts",
            size: |r| r.attempts.iter().map(Message::encoded_len).sum(),
            omit: |r| r.attempts.clear(),
        },
        Part {
            name: "depends_on_keys",
            size: |r| r.depends_on_keys.iter().map(String::len).sum(),
            omit: |r| r.depends_on_keys.clear(),
        },
        Part {
            name: "depends_on",
            size: |r| r.depends_on.len() * 5,
            omit: |r| r.depends_on.clear(),
        },
        Part { name: "step_name", size: |r| r.step_name.len(), omit: |r| r.step_name.clear() },
        Part {
            name: "step_version",
            size: |r| text(r.step_version.as_ref()),
            omit: |r| r.step_version = None,
        },
        Part {
            name: "progress_message",
            size: |r| text(r.progress_message.as_ref()),
            omit: |r| r.progress_message = None,
        },
        Part {
            name: "parent_step_key",
            size: |r| text(r.parent_step_key.as_ref()),
            omit: |r| r.parent_step_key = None,
        },
    ];

    fn omitted_fields(&mut self) -> &mut Vec<String> {
        &mut self.omitted_fields
    }
}

impl Shown for proto::Artifact {
    const PARTS: &'static [Part<Self>] = &[
        Part {
            name: "metadata",
            size: |r| length(r.metadata.as_ref()),
            omit: |r| r.metadata = None,
        },
        Part {
            name: "storage_path",
            size: |r| text(r.storage_path.as_ref()),
            omit: |r| r.storage_path = None,
        },
        Part {
            name: "artifact_name",
            size: |r| r.artifact_name.len(),
            omit: |r| r.artifact_name.clear(),
        },
        Part {
            name: "artifact_type",
            size: |r| r.artifact_type.len(),
            omit: |r| r.artifact_type.clear(),
        },
        Part {
            name: "mime_type",
            size: |r| text(r.mime_type.as_ref()),
            omit: |r| r.mime_type = None,
        },
        Part {
            name: "storage_type",
            size: |r| text(r.storage_type.as_ref()),
            omit: |r| r.storage_type = None,
        },
        Part { name: "sha256", size: |r| text(r.sha256.as_ref()), omit: |r| r.sha256 = None },
        Part { name: "step_key", size: |r| text(r.step_key.as_ref()), omit: |r| r.step_key = None },
    ];

    fn omitted_fields(&mut self) -> &mut Vec<String> {
        &mut self.omitted_fields
    }
}

impl Shown for proto::Configuration {
    const PARTS: &'static [Part<Self>] = &[
        Part {
            name: "configuration",
            size: |r| length(r.configuration.as_ref()),
            omit: |r| r.configuration = None,
        },
        Part { name: "app_name", size: |r| r.app_name.len(), omit: |r| r.app_name.clear() },
        Part {
            name: "sub_app_name",
            size: |r| text(r.sub_app_name.as_ref()),
            omit: |r| r.sub_app_name = None,
        },
        Part {
            name: "created_by",
            size: |r| text(r.created_by.as_ref()),
            omit: |r| r.created_by = None,
        },
    ];

    fn omitted_fields(&mut self) -> &mut Vec<String> {
        &mut self.omitted_fields
    }
}

pub fn execution(record: &domain::Execution) -> proto::Execution {
    fitted(records::execution(record))
}

/// Without input and output.
pub fn step(record: &domain::Step) -> proto::Step {
    fitted(records::step(record, false))
}

/// Many in one answer, without input and output. Where together they are too large, those that are larger than others lose
/// their largest fields.
pub fn steps<'a>(records: impl ExactSizeIterator<Item = &'a domain::Step>) -> Vec<proto::Step> {
    let share = RECORD_BYTES / records.len().max(1);
    let steps: Vec<proto::Step> = records.map(step).collect();
    match steps.iter().map(Message::encoded_len).sum::<usize>() > RECORD_BYTES {
        true => steps.into_iter().map(|step| fitted_to(share, step)).collect(),
        false => steps,
    }
}

/// With input and output as far as the record has them at hand, but for those that are larger than this.
pub fn step_with_payloads(record: &domain::Step, payload_bytes: usize) -> proto::Step {
    let mut step = records::step(record, true);
    for (name, payload) in [("input", &mut step.input), ("output", &mut step.output)] {
        if length(payload.as_ref()) > payload_bytes {
            *payload = None;
            step.omitted_fields.push(name.to_owned());
        }
    }
    fitted(step)
}

pub fn artifact(record: &domain::Artifact) -> proto::Artifact {
    fitted(convert::artifact(record))
}

pub fn configuration(record: &domain::Configuration) -> proto::Configuration {
    fitted(convert::configuration(record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(bytes: usize) -> Option<prost_types::Struct> {
        let text = prost_types::value::Kind::StringValue("x".repeat(bytes));
        let value = prost_types::Value { kind: Some(text) };
        Some(prost_types::Struct { fields: [("x".to_owned(), value)].into() })
    }

    #[test]
    fn a_record_loses_its_largest_fields_until_it_fits_and_no_more() {
        const MIB: usize = 1024 * 1024;
        let error = proto::Error {
            message: "x".repeat(MIB),
            stack_trace: "x".repeat(2 * MIB),
            details: strings(MIB + MIB / 2),
            ..Default::default()
        };
        let step = proto::Step {
            execution_id: "e".to_owned(),
            metadata: strings(MIB / 4),
            error: Some(error.clone()),
            ..Default::default()
        };
        let shown = fitted(step.clone());
        assert_eq!(shown.omitted_fields, ["error.stack_trace"]);
        let mut expected = step;
        if let Some(error) = &mut expected.error {
            error.stack_trace.clear();
        }
        assert_eq!(proto::Step { omitted_fields: Vec::new(), ..shown }, expected);

        let small = proto::Execution { error: Some(error), ..Default::default() };
        assert_eq!(fitted(small.clone()).omitted_fields, ["error.stack_trace"]);
        let fits = proto::Execution { metadata: strings(RECORD_BYTES - 100), ..Default::default() };
        assert_eq!(fitted(fits.clone()), fits);
    }

    #[test]
    fn many_steps_fit_into_one_answer_and_small_ones_stay_whole() {
        const MIB: usize = 1024 * 1024;
        let small = domain::Step {
            execution_id: "e".to_owned(),
            step_name: "small".to_owned(),
            ..Default::default()
        };
        let metadata = bson::doc! { "text": "x".repeat(MIB) };
        let large = domain::Step { step_id: 1, metadata, ..small.clone() };
        assert_eq!(steps([&small, &large].into_iter()), [step(&small), step(&large)]);
        let many: Vec<&domain::Step> = [&small].into_iter().chain([&large; 12]).collect();
        let shown = steps(many.into_iter());
        assert_eq!(shown[0], step(&small));
        for step in &shown[1..] {
            assert_eq!(
                (step.step_id, &step.omitted_fields[..]),
                (Some(1), &["metadata".to_owned()][..])
            );
        }
        assert!(shown.iter().map(Message::encoded_len).sum::<usize>() <= RECORD_BYTES);
    }

    /// A field that is new is not forgotten: it can be left out, or it has a limit of its own.
    #[test]
    fn every_field_that_may_be_long_is_among_the_parts() {
        use prost_types::field_descriptor_proto::{Label, Type};
        fn parts<M: Shown>() -> Vec<&'static str> {
            M::PARTS.iter().map(|part| part.name).collect()
        }
        let set = prost_types::FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
        for (message, parts) in [
            ("Execution", parts::<proto::Execution>()),
            ("Step", parts::<proto::Step>()),
            ("Artifact", parts::<proto::Artifact>()),
            ("Configuration", parts::<proto::Configuration>()),
        ] {
            let mut messages = set.file.iter().flat_map(|file| &file.message_type);
            let found = messages.find(|found| found.name() == message).unwrap();
            for field in &found.field {
                let is_long = match field.r#type() {
                    Type::String | Type::Bytes => true,
                    Type::Message => field.type_name() != ".google.protobuf.Timestamp",
                    _ => field.label() == Label::Repeated,
                };
                // Ids have limits of their own, or say which record it is.
                let is_id = ["execution_id", "artifact_id", "omitted_fields"]
                    .contains(&field.name())
                    || (message, field.name()) == ("Step", "step_key")
                    || (message, field.name()) == ("Configuration", "version");
                assert_eq!(
                    parts.contains(&field.name()),
                    is_long && !is_id,
                    "{message}.{}",
                    field.name()
                );
            }
        }
    }

    /// Whatever a field of text, of values or of a list holds, a record goes down to its ids, status, times and numbers.
    #[test]
    fn every_field_without_a_limit_of_its_own_can_be_left_out() {
        let long = || "x".repeat(RECORD_BYTES + 1);
        let some = || Some(long());
        let error = || Some(proto::Error { message: long(), ..Default::default() });
        let executions = [
            proto::Execution { app_name: long(), ..Default::default() },
            proto::Execution { sub_app_name: some(), ..Default::default() },
            proto::Execution { user_id: some(), ..Default::default() },
            proto::Execution { cancel_reason: some(), ..Default::default() },
            proto::Execution { parent_execution_id: some(), ..Default::default() },
            proto::Execution { configuration_version: some(), ..Default::default() },
            proto::Execution { error: error(), ..Default::default() },
        ];
        for record in executions {
            let shown = fitted(record);
            assert_eq!(shown.omitted_fields.len(), 1, "{:?}", shown.omitted_fields);
            assert!(shown.encoded_len() < 100);
        }
        let steps = [
            proto::Step { step_name: long(), ..Default::default() },
            proto::Step { step_version: some(), ..Default::default() },
            proto::Step { progress_message: some(), ..Default::default() },
            proto::Step { parent_step_key: some(), ..Default::default() },
            proto::Step { depends_on_keys: vec![long()], ..Default::default() },
            proto::Step { depends_on: vec![i32::MAX; RECORD_BYTES / 4], ..Default::default() },
            proto::Step { error: error(), ..Default::default() },
            proto::Step {
                attempts: vec![proto::Attempt { error: error(), ..Default::default() }],
                ..Default::default()
            },
        ];
        for record in steps {
            let shown = fitted(record);
            assert_eq!(shown.omitted_fields.len(), 1, "{:?}", shown.omitted_fields);
            assert!(shown.encoded_len() < 100);
        }
        let artifacts = [
            proto::Artifact { artifact_name: long(), ..Default::default() },
            proto::Artifact { artifact_type: long(), ..Default::default() },
            proto::Artifact { storage_path: some(), ..Default::default() },
            proto::Artifact { metadata: strings(RECORD_BYTES), ..Default::default() },
        ];
        for record in artifacts {
            assert_eq!(fitted(record).omitted_fields.len(), 1);
        }
        let configuration =
            proto::Configuration { configuration: strings(RECORD_BYTES), ..Default::default() };
        assert_eq!(fitted(configuration).omitted_fields, ["configuration"]);
    }
}
