//! Messages made from descriptors: valid ones, and all that is not.

use std::collections::HashMap;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _};

/// A method of a service.
#[derive(Debug, Clone)]
pub struct Method {
    pub path: String,
    pub input: String,
    pub client_streaming: bool,
    pub server_streaming: bool,
}

/// What messages look like.
pub struct Types {
    messages: HashMap<String, DescriptorProto>,
    enums: HashMap<String, EnumDescriptorProto>,
    pub methods: Vec<Method>,
}

/// What kind of message is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Values as clients send them, of records that are there now and then.
    Plausible,
    /// Any value that the wire can carry.
    Odd,
    /// Lists, maps and texts far over their limits.
    Huge,
    /// Values in values in values.
    Deep,
    /// A message with bytes changed, cut off, put in or taken out.
    Mutated,
    /// No message at all.
    Noise,
}

impl Manner {
    pub fn any(random: &mut StdRng) -> Manner {
        match random.random_range(0..1000) {
            0..550 => Manner::Plausible,
            550..780 => Manner::Odd,
            780..790 => Manner::Huge,
            790..830 => Manner::Deep,
            830..960 => Manner::Mutated,
            _ => Manner::Noise,
        }
    }
}

impl Types {
    pub fn of(sets: &[&[u8]]) -> Types {
        let mut types =
            Types { messages: HashMap::new(), enums: HashMap::new(), methods: Vec::new() };
        for set in sets {
            let set = FileDescriptorSet::decode(*set).expect("descriptors are a message");
            for file in set.file {
                let package = format!(".{}", file.package());
                for message in file.message_type {
                    types.add(&package, message);
                }
                for of_file in file.enum_type {
                    types.enums.insert(format!("{package}.{}", of_file.name()), of_file);
                }
                for service in file.service {
                    for method in &service.method {
                        types.methods.push(Method {
                            path: format!(
                                "/{}.{}/{}",
                                &package[1..],
                                service.name(),
                                method.name()
                            ),
                            input: method.input_type().to_owned(),
                            client_streaming: method.client_streaming(),
                            server_streaming: method.server_streaming(),
                        });
                    }
                }
            }
        }
        types
    }

    fn add(&mut self, scope: &str, message: DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        for inner in message.nested_type.clone() {
            self.add(&name, inner);
        }
        for inner in message.enum_type.clone() {
            self.enums.insert(format!("{name}.{}", inner.name()), inner);
        }
        self.messages.insert(name, message);
    }

    /// One message of this type.
    pub fn make(&self, name: &str, manner: Manner, random: &mut StdRng) -> Vec<u8> {
        let mut maker = Maker { types: self, manner, random, bytes: 0 };
        match manner {
            Manner::Noise => {
                let length = maker.random.random_range(0..200);
                maker.noise(length)
            }
            Manner::Mutated => {
                maker.manner = Manner::Plausible;
                let message = maker.message(name, 0);
                maker.mutated(message)
            }
            _ => maker.message(name, 0),
        }
    }
}

/// A message ends about here, also a huge one.
const MOST: usize = 3 * 1024 * 1024;

struct Maker<'a> {
    types: &'a Types,
    manner: Manner,
    random: &'a mut StdRng,
    bytes: usize,
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn tag(number: i32, wire: u64, out: &mut Vec<u8>) {
    varint(u64::from(number.unsigned_abs()) << 3 | wire, out);
}

fn block(number: i32, content: &[u8], out: &mut Vec<u8>) {
    tag(number, 2, out);
    varint(content.len() as u64, out);
    out.extend(content);
}

impl Maker<'_> {
    fn chance(&mut self, of_hundred: u32) -> bool {
        self.random.random_range(0..100) < of_hundred
    }

    fn noise(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.random.fill_bytes(&mut bytes);
        bytes
    }

    fn mutated(&mut self, mut message: Vec<u8>) -> Vec<u8> {
        for _ in 0..self.random.random_range(1..6) {
            let at = self.random.random_range(0..=message.len());
            match self.random.random_range(0..5) {
                0 => message.truncate(at),
                1 => message.insert(at, self.random.random()),
                2 if at < message.len() => drop(message.remove(at)),
                3 if at < message.len() => {
                    message[at] ^= 1_u8 << self.random.random_range(0..8_u32)
                }
                _ => {
                    let again = message[at..].to_vec();
                    message.extend(again);
                }
            }
        }
        message
    }

    fn message(&mut self, name: &str, depth: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let types = self.types;
        let Some(descriptor) = types.messages.get(name) else { return out };
        if self.manner == Manner::Deep
            && matches!(
                name,
                ".google.protobuf.Value" | ".google.protobuf.Struct" | ".google.protobuf.ListValue"
            )
        {
            return self.deep(name);
        }
        let present = match self.manner {
            Manner::Plausible => 55,
            _ => 40,
        };
        let mut chosen: HashMap<i32, usize> = HashMap::new();
        for (index, field) in descriptor.field.iter().enumerate() {
            // One of a oneof, mostly.
            if let Some(oneof) = field.oneof_index
                && !field.proto3_optional()
            {
                let of_it: Vec<usize> = (0..descriptor.field.len())
                    .filter(|at| descriptor.field[*at].oneof_index == Some(oneof))
                    .collect();
                let pick = self.random.random_range(0..of_it.len());
                let pick = *chosen.entry(oneof).or_insert(of_it[pick]);
                if pick == index || self.manner == Manner::Odd && self.chance(5) {
                    self.field(field, depth, &mut out);
                }
                continue;
            }
            let needed =
                matches!(field.name(), "execution_id" | "app_name" | "step_name" | "status")
                    && self.manner == Manner::Plausible;
            if depth < 12
                && self.bytes < MOST
                && (self.chance(present) || needed && self.chance(95))
            {
                self.field(field, depth, &mut out);
            }
        }
        self.bytes += out.len() / (depth + 1);
        if self.manner == Manner::Odd && self.chance(10) {
            // A field that no version knows, of any kind.
            tag(self.random.random_range(1..20_000), 2, &mut out);
            varint(3, &mut out);
            out.extend(self.noise(3));
        }
        out
    }

    fn field(&mut self, field: &FieldDescriptorProto, depth: usize, out: &mut Vec<u8>) {
        let repeated = field.label() == Label::Repeated;
        let times = match (repeated, self.manner) {
            (false, Manner::Odd) if self.chance(5) => 2,
            (false, _) => 1,
            (true, Manner::Huge) if depth < 3 && self.chance(50) => {
                [100, 5_000, 60_000, 200_000][self.random.random_range(0..4)]
            }
            (true, _) => self.random.random_range(0..4),
        };
        let scalar =
            !matches!(field.r#type(), Type::String | Type::Bytes | Type::Message | Type::Group);
        if repeated && scalar && !self.chance(20) {
            let mut packed = Vec::new();
            for _ in 0..times {
                self.scalar(field, &mut packed);
            }
            return block(field.number(), &packed, out);
        }
        for _ in 0..times {
            if out.len() + self.bytes > MOST {
                return;
            }
            match field.r#type() {
                Type::String => {
                    let text = self.text(field.name());
                    block(field.number(), &text, out);
                }
                Type::Bytes => {
                    let length = match self.manner {
                        Manner::Huge => 200_000,
                        _ => [0, 1, 64, 5_000][self.random.random_range(0..4)],
                    };
                    let bytes = self.noise(length);
                    block(field.number(), &bytes, out);
                }
                Type::Message | Type::Group => {
                    let message = self.message(field.type_name(), depth + 1);
                    block(field.number(), &message, out);
                }
                Type::Fixed64 | Type::Sfixed64 | Type::Double => {
                    tag(field.number(), 1, out);
                    self.scalar(field, out);
                }
                Type::Fixed32 | Type::Sfixed32 | Type::Float => {
                    tag(field.number(), 5, out);
                    self.scalar(field, out);
                }
                _ => {
                    tag(field.number(), 0, out);
                    self.scalar(field, out);
                }
            }
        }
    }

    fn scalar(&mut self, field: &FieldDescriptorProto, out: &mut Vec<u8>) {
        match field.r#type() {
            Type::Double | Type::Fixed64 | Type::Sfixed64 => {
                let value = match self.random.random_range(0..8) {
                    0 if self.manner != Manner::Plausible => f64::NAN,
                    1 if self.manner != Manner::Plausible => f64::INFINITY,
                    2 if self.manner != Manner::Plausible => 1e300,
                    3 => -1.0,
                    4 => 0.0,
                    _ => self.random.random::<f64>(),
                };
                out.extend(value.to_le_bytes());
            }
            Type::Float | Type::Fixed32 | Type::Sfixed32 => {
                out.extend(self.random.random::<f32>().to_le_bytes());
            }
            Type::Bool => varint(self.random.random_range(0..2), out),
            Type::Enum => {
                let known = self.types.enums.get(field.type_name());
                let known = known.map_or(0, |known| known.value.len() as i32);
                let value = match self.manner {
                    Manner::Plausible => self.random.random_range(0..known.max(1)),
                    _ => [-1, 0, 1, known, 99, i32::MAX, i32::MIN][self.random.random_range(0..7)],
                };
                varint(i64::from(value) as u64, out);
            }
            _ => {
                let value = match self.manner {
                    Manner::Plausible if field.name() == "seconds" => {
                        1_764_500_000 + self.random.random_range(-100_000..100_000)
                    }
                    Manner::Plausible => self.random.random_range(0..12),
                    _ => {
                        let odd = [
                            0,
                            1,
                            -1,
                            7,
                            1000,
                            1001,
                            i64::from(i32::MAX),
                            i64::from(i32::MIN),
                            i64::MAX,
                            i64::MIN,
                            1 << 53,
                            (1 << 53) + 1,
                            253_402_300_800,
                            -62_135_596_801,
                            999_999_999,
                            1_000_000_000,
                        ];
                        odd[self.random.random_range(0..odd.len())]
                    }
                };
                varint(value as u64, out);
            }
        }
    }

    fn text(&mut self, name: &str) -> Vec<u8> {
        let n = self.random.random_range(0..24);
        if self.manner == Manner::Plausible || self.chance(40) {
            let text = match name {
                "execution_id" | "parent_execution_id" => format!("fuzz-{n}"),
                "step_key" | "parent_step_key" | "depends_on_keys" => format!("key-{}", n % 6),
                "time_zone" => ["UTC", "Europe/Berlin", "Asia/Kathmandu"][n % 3].to_owned(),
                "version" | "from_version" | "to_version" => format!("v{}", n % 4),
                "storage_type" => ["gridfs", "local", "s3"][n % 3].to_owned(),
                "storage_path" => format!("file:{n:02x}/x/{n}"),
                "artifact_id" => format!("{n:024x}"),
                "mime_type" => "text/plain".to_owned(),
                "query" => ["failed", "time*", "\"no such\"", "a b c"][n % 4].to_owned(),
                "page_token" | "resume_token" | "upload_id" if self.chance(70) => String::new(),
                _ => format!("{} {}", name.replace('_', " "), n % 5).trim().replace(' ', "-"),
            };
            return text.into_bytes();
        }
        let long = match self.manner {
            Manner::Huge => 400_000,
            _ => 300,
        };
        match self.random.random_range(0..10) {
            0 => Vec::new(),
            1 => vec![b'x'; long],
            2 => "ж\u{301}𝕏".repeat(long / 8).into_bytes(),
            3 => b"a\0b".to_vec(),
            4 => b"$where".to_vec(),
            5 => b"a.b\\.c..d".to_vec(),
            6 => "\u{10FFFF}\u{FEFF}\u{202E}".as_bytes().to_vec(),
            7 => vec![0xff, 0xfe, 0xc0],
            8 => b"../../etc/passwd".to_vec(),
            _ => self.noise(20),
        }
    }

    /// A value in lists and objects, to a depth that no program has a use for.
    fn deep(&mut self, name: &str) -> Vec<u8> {
        let levels = [20, 31, 99, 101, 3_000, 60_000][self.random.random_range(0..6)];
        // The innermost: a null.
        let mut inner = vec![0x08, 0x00];
        for _ in 0..levels {
            // The lengths of all levels are part of all levels outside of them.
            if inner.len() > 300_000 {
                break;
            }
            let mut outer = Vec::new();
            if self.chance(50) {
                let mut list = Vec::new();
                block(1, &inner, &mut list);
                block(6, &list, &mut outer);
            } else {
                let mut entry = Vec::new();
                block(1, b"k", &mut entry);
                block(2, &inner, &mut entry);
                let mut object = Vec::new();
                block(1, &entry, &mut object);
                block(5, &object, &mut outer);
            }
            inner = outer;
        }
        let mut out = Vec::new();
        match name {
            ".google.protobuf.Value" => return inner,
            ".google.protobuf.ListValue" => block(1, &inner, &mut out),
            _ => {
                let mut entry = Vec::new();
                block(1, b"k", &mut entry);
                block(2, &inner, &mut entry);
                block(1, &entry, &mut out);
            }
        }
        out
    }
}
