//! What a request would take in memory, estimated on its bytes before it is decoded.
//!
//! Two bytes on the wire can become hundreds: an empty message in a list, a null in an object. The estimate walks the
//! encoding along the descriptors and adds up what the decoded messages and the records made of them take. It is
//! exact about how many there are and rough about their sizes. What is not valid protobuf is left to the decoder, which
//! names the field.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

use crate::proto;

/// Bytes of a string or a list before anything is in it.
const HEADER_BYTES: usize = 24;
/// Bytes of a `google.protobuf.Value` in a list that has doubled, and of the BSON value that is made of it.
const VALUE_BYTES: usize = 2 * 32 + 160;
/// Bytes that an entry of a map takes beside its key and value: nodes, hashes and spare room.
const ENTRY_BYTES: usize = 16;
/// Lists double as they grow, and a record is made of every message.
const COPIES: usize = 3;
/// Where the decoder refuses to go deeper.
const DEPTH: usize = 100;
/// No byte on the wire becomes more than this: the heaviest message, in two bytes when it is empty. A shorter message
/// need not be walked. `no_byte_weighs_more` holds it against the descriptors.
const HEAVIEST_BYTE: usize = 2048;

/// A message type by its place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind(usize);

#[derive(Debug)]
enum Shape {
    /// A number, in the message itself.
    Scalar,
    /// A list of numbers, packed or not.
    Scalars,
    /// Text or bytes, in the message itself but for what it says.
    Text,
    Texts,
    /// A message, counted as part of the one that it is in.
    Message(Kind),
    Messages(Kind),
}

#[derive(Debug, Default)]
struct Described {
    /// By number.
    fields: Vec<Option<Shape>>,
    /// What one more of them in a list takes.
    bytes: usize,
}

/// Every message that a request may contain.
#[derive(Debug, Default)]
pub struct Weights {
    messages: Vec<Described>,
    /// The requests of the services by their full names.
    requests: HashMap<String, Kind>,
}

static WEIGHTS: LazyLock<Weights> = LazyLock::new(|| Weights::described(proto::DESCRIPTORS));

impl Weights {
    /// Those of the API.
    pub fn get() -> &'static Weights {
        &WEIGHTS
    }

    /// Reads the descriptors, which the build made.
    fn described(descriptors: &[u8]) -> Weights {
        let set = FileDescriptorSet::decode(descriptors).unwrap_or_default();
        let mut types = HashMap::new();
        for file in &set.file {
            for message in &file.message_type {
                collect(&format!(".{}", file.package()), message, &mut types);
            }
        }
        let mut building =
            Building { types: &types, done: HashMap::new(), weights: Weights::default() };
        for service in set.file.iter().flat_map(|file| &file.service) {
            for method in &service.method {
                let kind = building.kind(method.input_type());
                let name = method.input_type().trim_start_matches('.').to_owned();
                building.weights.requests.insert(name, kind);
            }
        }
        building.weights
    }

    /// The type of a request; `None` for what is no request of the API, and is not weighed.
    pub fn request(&self, full_name: &str) -> Option<Kind> {
        self.requests.get(full_name).copied()
    }

    /// What the message takes once decoded, or `None` where that is surely within the limit.
    pub fn weigh(&self, kind: Kind, bytes: &[u8], limit: usize) -> Option<usize> {
        if bytes.len() <= limit / HEAVIEST_BYTE {
            return None;
        }
        let taken = self.estimate(kind, bytes);
        (taken > limit).then_some(taken)
    }

    /// What the message takes once decoded.
    pub fn estimate(&self, kind: Kind, bytes: &[u8]) -> usize {
        self.messages[kind.0].bytes + self.walk(kind, bytes, 0).0
    }

    /// What is in a message, and whether it could be read to its end.
    fn walk(&self, kind: Kind, bytes: &[u8], depth: usize) -> (usize, bool) {
        let described = &self.messages[kind.0];
        let mut rest = bytes;
        let mut taken = 0_usize;
        while !rest.is_empty() {
            let Some((number, value)) = field(&mut rest, depth) else { return (taken, false) };
            let shape = described.fields.get(number as usize).and_then(Option::as_ref);
            let more = match (shape, value) {
                (None, Wire::Number | Wire::Bytes(_)) | (Some(Shape::Scalar), Wire::Number) => 0,
                (Some(Shape::Scalars), Wire::Bytes(packed)) => 16 * numbers(packed),
                (Some(Shape::Scalars), Wire::Number) => 16,
                (None, Wire::Group) => 0,
                (Some(Shape::Text), Wire::Bytes(text)) => 2 * text.len(),
                (Some(Shape::Texts), Wire::Bytes(text)) => COPIES * HEADER_BYTES + 2 * text.len(),
                (Some(Shape::Message(inner) | Shape::Messages(inner)), Wire::Bytes(message)) => {
                    if depth == DEPTH {
                        return (taken, false);
                    }
                    let (within, whole) = self.walk(*inner, message, depth + 1);
                    let own = match shape {
                        Some(Shape::Messages(_)) => self.messages[inner.0].bytes,
                        _ => 0,
                    };
                    if !whole {
                        return (taken.saturating_add(own + within), false);
                    }
                    own + within
                }
                // Not what the descriptor says: the decoder refuses it.
                (Some(_), _) => return (taken, false),
            };
            taken = taken.saturating_add(more);
        }
        (taken, true)
    }
}

/// Messages by their full names, those within others too.
fn collect<'a>(
    within: &str,
    message: &'a DescriptorProto,
    types: &mut HashMap<String, &'a DescriptorProto>,
) {
    let name = format!("{within}.{}", message.name());
    for nested in &message.nested_type {
        collect(&name, nested, types);
    }
    types.insert(name, message);
}

struct Building<'a> {
    types: &'a HashMap<String, &'a DescriptorProto>,
    done: HashMap<String, Kind>,
    weights: Weights,
}

impl Building<'_> {
    fn kind(&mut self, name: &str) -> Kind {
        if let Some(kind) = self.done.get(name) {
            return *kind;
        }
        let kind = Kind(self.weights.messages.len());
        self.weights.messages.push(Described::default());
        self.done.insert(name.to_owned(), kind);
        let message = self.types.get(name).copied();
        let fields = message.map_or(&[][..], |message| &message.field);
        let mut shapes: Vec<Option<Shape>> = Vec::new();
        for field in fields {
            let number = field.number().unsigned_abs() as usize;
            shapes.resize_with(shapes.len().max(number + 1), || None);
            shapes[number] = Some(self.shape(field));
        }
        let is_entry =
            message.is_some_and(|message| message.options.as_ref().is_some_and(|o| o.map_entry()));
        let bytes = match name {
            ".google.protobuf.Value" => VALUE_BYTES,
            _ => COPIES * (self.inline(name, 0)) + if is_entry { ENTRY_BYTES } else { 0 },
        };
        self.weights.messages[kind.0] = Described { fields: shapes, bytes };
        kind
    }

    fn shape(&mut self, field: &FieldDescriptorProto) -> Shape {
        let repeated = field.label() == Label::Repeated;
        match (field.r#type(), repeated) {
            (Type::Message | Type::Group, true) => Shape::Messages(self.kind(field.type_name())),
            (Type::Message | Type::Group, false) => Shape::Message(self.kind(field.type_name())),
            (Type::String | Type::Bytes, true) => Shape::Texts,
            (Type::String | Type::Bytes, false) => Shape::Text,
            (_, true) => Shape::Scalars,
            (_, false) => Shape::Scalar,
        }
    }

    /// Bytes of a message itself, with the messages that are in it and without what it points to.
    fn inline(&self, name: &str, depth: usize) -> usize {
        if name == ".google.protobuf.Value" {
            return VALUE_BYTES / COPIES;
        }
        let Some(message) = self.types.get(name).filter(|_| depth < 8) else { return HEADER_BYTES };
        let of = |field: &FieldDescriptorProto| match (field.r#type(), field.label()) {
            (_, Label::Repeated) | (Type::String | Type::Bytes, _) => HEADER_BYTES,
            (Type::Message | Type::Group, _) => 8 + self.inline(field.type_name(), depth + 1),
            _ => 16,
        };
        // Of the alternatives of a oneof there is one, and it is counted as the largest.
        let mut alternatives: HashMap<i32, usize> = HashMap::new();
        let mut bytes = 0;
        for field in &message.field {
            match field.oneof_index {
                Some(index) if !field.proto3_optional() => {
                    let largest = alternatives.entry(index).or_default();
                    *largest = of(field).max(*largest);
                }
                _ => bytes += of(field),
            }
        }
        bytes + alternatives.values().sum::<usize>()
    }
}

enum Wire<'a> {
    Number,
    Bytes(&'a [u8]),
    /// Of fields that nobody knows: no message of the API has any, and the decoder skips them.
    Group,
}

/// The next field's number and value; `None` where there is no valid one.
fn field<'a>(rest: &mut &'a [u8], depth: usize) -> Option<(u32, Wire<'a>)> {
    let tag = varint(rest)?;
    let number = u32::try_from(tag >> 3).ok()?;
    let fixed = |rest: &mut &'a [u8], bytes: usize| {
        *rest = rest.get(bytes..)?;
        Some(Wire::Number)
    };
    let value = match tag & 7 {
        0 => varint(rest).map(|_| Wire::Number)?,
        1 => fixed(rest, 8)?,
        5 => fixed(rest, 4)?,
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            let (value, after) = rest.split_at_checked(length)?;
            *rest = after;
            Wire::Bytes(value)
        }
        3 => {
            skip_group(number, rest, depth + 1)?;
            Wire::Group
        }
        _ => return None,
    };
    Some((number, value))
}

/// Goes on behind the end of a group.
fn skip_group(number: u32, rest: &mut &[u8], depth: usize) -> Option<()> {
    if depth > DEPTH {
        return None;
    }
    loop {
        let mut ahead = *rest;
        let tag = varint(&mut ahead)?;
        if tag & 7 == 4 {
            *rest = ahead;
            return (u32::try_from(tag >> 3).ok()? == number).then_some(());
        }
        field(rest, depth)?;
    }
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for place in 0..10 {
        let (first, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(first & 0x7f) << (7 * place);
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Numbers in a packed list: varints end with a byte below 128. Of fixed ones, which the API has none of in requests,
/// this is an upper bound.
fn numbers(packed: &[u8]) -> usize {
    packed.iter().filter(|byte| **byte < 0x80).count()
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::value::Kind as JsonKind;
    use prost_types::{ListValue, Struct, Value};

    use super::*;

    fn weight(name: &str, message: &impl Message) -> usize {
        let weights = Weights::get();
        let kind = weights.request(name).expect("a request");
        let bytes = message.encode_to_vec();
        let (taken, whole) = weights.walk(kind, &bytes, 0);
        assert!(whole);
        weights.messages[kind.0].bytes + taken
    }

    fn nulls(count: usize) -> Value {
        let null = Value { kind: Some(JsonKind::NullValue(0)) };
        Value { kind: Some(JsonKind::ListValue(ListValue { values: vec![null; count] })) }
    }

    #[test]
    fn every_request_of_the_api_is_weighed() {
        let weights = Weights::get();
        for name in
            ["CreateExecutionRequest", "IngestRequest", "SearchRequest", "RunRetentionRequest"]
        {
            assert!(weights.request(&format!("stepwell.v1.{name}")).is_some(), "{name}");
        }
        assert!(weights.request("stepwell.v1.CreateExecutionResponse").is_none());
    }

    #[test]
    fn no_byte_weighs_more() {
        let heaviest = Weights::get().messages.iter().map(|described| described.bytes).max();
        let heaviest = heaviest.expect("there are messages");
        assert!(heaviest / 2 <= HEAVIEST_BYTE, "{heaviest}");
    }

    #[test]
    fn small_things_in_great_numbers_weigh_what_they_take() {
        let name = "stepwell.v1.StartStepRequest";
        let few = weight(name, &proto::StartStepRequest::default());
        let input = Some(nulls(1_000_000));
        let many = weight(name, &proto::StartStepRequest { input, ..Default::default() });
        assert!(many - few >= 1_000_000 * size_of::<bson::Bson>(), "{many}");

        let entries = (0..100_000).map(|number| (number.to_string(), nulls(0))).collect();
        let metadata = Some(Struct { fields: entries });
        let object = weight(name, &proto::StartStepRequest { metadata, ..Default::default() });
        assert!(object >= 100_000 * 2 * size_of::<bson::Bson>(), "{object}");

        let steps = vec![proto::PlannedStep::default(); 1000];
        let plan = proto::PlanStepsRequest { steps, ..Default::default() };
        let plan = weight("stepwell.v1.PlanStepsRequest", &plan);
        assert!(plan >= 1000 * size_of::<proto::PlannedStep>(), "{plan}");
    }

    #[test]
    fn an_ordinary_great_payload_passes() {
        let text = Value { kind: Some(JsonKind::StringValue("x".repeat(6 * 1024 * 1024))) };
        let request = proto::StartStepRequest { input: Some(text), ..Default::default() };
        assert!(weight("stepwell.v1.StartStepRequest", &request) < 16 * 1024 * 1024);
        // Six megabytes of numbers in lists, as an embedding is.
        let number = Value { kind: Some(JsonKind::NumberValue(0.5)) };
        let list = ListValue { values: vec![number; 500_000] };
        let input = Some(Value { kind: Some(JsonKind::ListValue(list)) });
        let request = proto::StartStepRequest { input, ..Default::default() };
        assert!(weight("stepwell.v1.StartStepRequest", &request) <= 256 * 1024 * 1024);
    }

    #[test]
    fn fields_that_nobody_knows_hide_nothing() {
        let weights = Weights::get();
        let kind = weights.request("stepwell.v1.StartStepRequest").expect("a request");
        let input = Some(nulls(1_000_000));
        let heavy = proto::StartStepRequest { input, ..Default::default() }.encode_to_vec();
        let group = [0xa3, 0x06, 0xa4, 0x06];
        let nested = [0xa3, 0x06, 0xab, 0x06, 0x08, 0x01, 0xac, 0x06, 0xa4, 0x06];
        for unknown in [&group[..], &nested, &[0xa8, 0x06, 0x01], &[0xa2, 0x06, 0x01, 0x00]] {
            let message = [unknown, &heavy].concat();
            assert!(proto::StartStepRequest::decode(&message[..]).is_ok());
            let (taken, whole) = weights.walk(kind, &message, 0);
            assert!(whole && taken > 100_000_000, "{unknown:?}: {taken}");
        }
    }

    /// As many of them as a payload may have.
    fn payload(element: &Value) -> Value {
        let one = bson::serialize_to_vec(&bson::doc! {
            "1234567": crate::rpc::convert::stored(element).expect("a value"),
        });
        let count = 6 * 1024 * 1024 / (one.expect("a document").len() - 5);
        let list = ListValue { values: vec![element.clone(); count] };
        Value { kind: Some(JsonKind::ListValue(list)) }
    }

    #[test]
    fn the_greatest_payloads_pass() {
        let number = |n| Value { kind: Some(JsonKind::NumberValue(n)) };
        let row = |keys: usize| {
            let fields = (0..keys).map(|key| (format!("k{key}"), number(1.0))).collect();
            Value { kind: Some(JsonKind::StructValue(Struct { fields })) }
        };
        let text = Value { kind: Some(JsonKind::StringValue("word".to_owned())) };
        let yes = Value { kind: Some(JsonKind::BoolValue(true)) };
        for element in [number(1.0), number(0.5), text, yes, row(1), row(2), row(10)] {
            let input = Some(payload(&element));
            let request = proto::StartStepRequest { input, ..Default::default() };
            let taken = weight("stepwell.v1.StartStepRequest", &request);
            assert!(taken <= 256 * 1024 * 1024, "{element:?}: {taken}");
        }
    }

    #[test]
    fn what_is_no_protobuf_is_left_to_the_decoder() {
        let weights = Weights::get();
        let kind = weights.request("stepwell.v1.StartStepRequest").expect("a request");
        for bad in
            [&[0x0a, 0xff][..], &[0x07], &[0x80; 11], &[0x08], &[0x3b, 0x3b], &[0x0a], &[0x3c]]
        {
            assert!(proto::StartStepRequest::decode(bad).is_err());
            assert!(!weights.walk(kind, bad, 0).1, "{bad:?}");
        }
        let mut deep = Vec::new();
        for _ in 0..10_000 {
            let mut outer = vec![0x32];
            prost::encoding::encode_varint(deep.len() as u64, &mut outer);
            outer.extend(&deep);
            deep = outer;
        }
        weights.walk(kind, &deep, 0);
    }
}
