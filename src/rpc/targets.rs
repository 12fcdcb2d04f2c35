//! What a request is about, read off its bytes by the descriptors: a record of a call names that, and nothing else of it.

use std::collections::HashMap;

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

use crate::auth::key;
use crate::domain::audit::Target;
use crate::domain::audit::entry::short;

/// Messages within a request that are looked into.
const WITHIN: [&str; 2] = ["configuration", "description"];

/// A field that says what a request is about.
#[derive(Debug, Clone)]
enum About {
    ExecutionId,
    StepId,
    ArtifactId,
    KeyId,
    AppName,
    Version,
    /// Not what it is about, but that it needs more than its method says.
    Pinned,
    Within(Shape),
}

/// The fields of a message that say what it is about, by number.
#[derive(Debug, Clone, Default)]
pub struct Shape(Vec<(u32, About)>);

/// What was found in a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    pub target: Target,
    pub pinned: bool,
}

/// Every message of these descriptors by its full name.
pub fn messages(set: &FileDescriptorSet) -> HashMap<String, &DescriptorProto> {
    let mut messages = HashMap::new();
    for file in &set.file {
        for message in &file.message_type {
            messages.insert(format!(".{}.{}", file.package(), message.name()), message);
        }
    }
    messages
}

impl Shape {
    pub fn of(name: &str, messages: &HashMap<String, &DescriptorProto>) -> Shape {
        Shape::within(name, messages, true)
    }

    fn within(name: &str, messages: &HashMap<String, &DescriptorProto>, deeper: bool) -> Shape {
        let fields = messages.get(name).map_or(&[][..], |message| &message.field);
        let about = fields.iter().filter(|field| field.label() != Label::Repeated);
        let about = about.filter_map(|field| {
            let about = match (field.name(), field.r#type()) {
                ("execution_id", Type::String) => About::ExecutionId,
                ("step_id", Type::Int32) => About::StepId,
                ("artifact_id", Type::String) => About::ArtifactId,
                ("key_id", Type::String) => About::KeyId,
                ("app_name", Type::String) => About::AppName,
                ("version", Type::String) => About::Version,
                ("pinned", Type::Bool) => About::Pinned,
                (name, Type::Message) if deeper && WITHIN.contains(&name) => {
                    About::Within(Shape::within(field.type_name(), messages, false))
                }
                _ => return None,
            };
            Some((field.number().unsigned_abs(), about))
        });
        Shape(about.collect())
    }

    /// What a message is about. Of one that cannot be read, what was found until there.
    pub fn find(&self, message: &[u8]) -> Found {
        let mut found = Found::default();
        // Whoever decodes it says what is wrong with it.
        let _ = self.walk(message, &mut found);
        found
    }

    fn walk(&self, mut rest: &[u8], found: &mut Found) -> Option<()> {
        while !rest.is_empty() {
            let (number, wire) = decode_key(&mut rest).ok()?;
            let about = self.0.iter().find(|(known, _)| *known == number).map(|(_, about)| about);
            let target = &mut found.target;
            match (about, wire) {
                (Some(About::StepId), WireType::Varint) => {
                    target.step_id = Some(decode_varint(&mut rest).ok()? as i32);
                }
                (Some(About::Pinned), WireType::Varint) => {
                    decode_varint(&mut rest).ok()?;
                    found.pinned = true;
                }
                (Some(About::Within(shape)), WireType::LengthDelimited) => {
                    shape.walk(bytes(&mut rest)?, found)?;
                }
                (Some(about), WireType::LengthDelimited) => {
                    let text = std::str::from_utf8(bytes(&mut rest)?).ok()?;
                    let text = Some(text).filter(|text| !text.is_empty());
                    match about {
                        About::ExecutionId => target.execution_id = text.map(short),
                        About::ArtifactId => target.artifact_id = text.map(short),
                        // Who sends a whole key in its place must not find it in the record.
                        About::KeyId => {
                            target.key_id = text.filter(|text| key::is_id(text)).map(str::to_owned);
                        }
                        About::AppName => target.app_name = text.map(short),
                        About::Version => target.version = text.map(short),
                        About::StepId | About::Pinned | About::Within(_) => {}
                    }
                }
                _ => skip_field(wire, number, &mut rest, DecodeContext::default()).ok()?,
            }
        }
        Some(())
    }
}

fn bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto;

    fn find<T: prost::Name>(message: &T) -> Found {
        let set = FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
        Shape::of(&format!(".{}", T::full_name()), &messages(&set)).find(&message.encode_to_vec())
    }

    #[test]
    fn a_request_says_what_it_is_about() {
        let found = find(&proto::FinishStepRequest {
            execution_id: "e".to_owned(),
            step_id: Some(7),
            step_name: Some("secret".to_owned()),
            ..Default::default()
        });
        let expected = Target { step_id: Some(7), ..Target::execution("e") };
        assert_eq!((found.target, found.pinned), (expected, false));
        let configuration = proto::Configuration {
            app_name: "app".to_owned(),
            version: "v1".to_owned(),
            ..Default::default()
        };
        let found = find(&proto::PublishConfigurationRequest {
            configuration: Some(configuration),
            activate: true,
        });
        assert_eq!(found.target.app_name.as_deref(), Some("app"));
        assert_eq!(found.target.version.as_deref(), Some("v1"));
        let pinned = |pinned| {
            let execution_id = "e".to_owned();
            find(&proto::UpdateExecutionRequest { execution_id, pinned, ..Default::default() })
        };
        assert!(pinned(Some(true)).pinned && pinned(Some(false)).pinned && !pinned(None).pinned);
        let found = find(&proto::CountExecutionsRequest {
            filter: Some(proto::ExecutionFilter {
                app_names: vec!["a".to_owned()],
                ..Default::default()
            }),
            ..Default::default()
        });
        assert_eq!(found, Found::default());
    }

    #[test]
    fn a_key_in_place_of_its_id_is_left_out() {
        let key = crate::auth::key::Key::generate().unwrap();
        let found = |key_id: &str| {
            find(&proto::RevokeKeyRequest { key_id: key_id.to_owned() }).target.key_id
        };
        assert_eq!(found(key.id()).as_deref(), Some(key.id()));
        for wrong in [key.expose(), &key.expose()[..64], "", "short", &"x".repeat(13)] {
            assert_eq!(found(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_no_panic() {
        let set = FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
        let shape = Shape::of(".stepwell.v1.FinishStepRequest", &messages(&set));
        let message = proto::FinishStepRequest {
            execution_id: "e".repeat(40),
            step_id: Some(i32::MAX),
            ..Default::default()
        };
        let whole = message.encode_to_vec();
        for end in 0..whole.len() {
            let _ = shape.find(&whole[..end]);
        }
        let _ = shape.find(&[0xff; 64]);
    }
}
