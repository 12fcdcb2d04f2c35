//! What differs between the records of one name.

use std::collections::HashMap;
use std::fmt;

use serde_json::{Value, json};

use super::name::Name;
use crate::cli::text;
use crate::proto::{FieldDigest, RecordDigest};

/// How records differ.
#[derive(Debug, Clone, PartialEq)]
pub enum How {
    MissingInA,
    MissingInB,
    /// Names of fields, with both values where they are wanted.
    Fields(Vec<(String, Option<(String, String)>)>),
}

/// One record that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    pub name: Name,
    /// More about which it is, where the name stands for several.
    pub which: Option<String>,
    pub how: How,
}

/// What came out of comparing the records of one name.
#[derive(Debug, Default, PartialEq)]
pub struct Compared {
    pub differences: Vec<Difference>,
    /// Artifacts that are equal but for where each side keeps the bytes.
    pub kept_elsewhere: u64,
}

/// Fields by which artifacts and points of one execution are paired before the others of them are compared.
fn pairing(name: &Name) -> &'static [&'static str] {
    match name {
        Name::Artifacts(_) => &["artifact_type", "artifact_name", "step_id"],
        Name::Points(_) => &["timestamp"],
        _ => &[],
    }
}

fn field<'a>(record: &'a RecordDigest, name: &str) -> Option<&'a FieldDigest> {
    record.fields.iter().find(|field| field.name == name)
}

/// Points that were told twice are one fact.
fn once(name: &Name, records: Vec<RecordDigest>) -> Vec<RecordDigest> {
    if !matches!(name, Name::Points(_)) {
        return records;
    }
    let mut seen = std::collections::HashSet::new();
    let key =
        |record: &RecordDigest| (record.digest.clone(), record.step_id, record.step_key.clone());
    records.into_iter().filter(|record| seen.insert(key(record))).collect()
}

/// Compares the records of one name, as they were read with their fields.
pub fn compare(name: &Name, a: Vec<RecordDigest>, b: Vec<RecordDigest>) -> Compared {
    let (mut a, mut b) = (once(name, a), once(name, b));
    // What both have.
    let mut count: HashMap<Vec<u8>, usize> = HashMap::new();
    b.iter().for_each(|record| *count.entry(record.digest.clone()).or_default() += 1);
    let mut common: HashMap<Vec<u8>, usize> = HashMap::new();
    a.retain(|record| match count.get_mut(&record.digest) {
        Some(left) if *left > 0 => {
            *left -= 1;
            *common.entry(record.digest.clone()).or_default() += 1;
            false
        }
        _ => true,
    });
    b.retain(|record| match common.get_mut(&record.digest) {
        Some(left) if *left > 0 => {
            *left -= 1;
            false
        }
        _ => true,
    });
    let mut compared = Compared::default();
    let by = pairing(name);
    let key = |record: &RecordDigest| -> Vec<Vec<u8>> {
        by.iter()
            .map(|name| field(record, name).map(|field| field.digest.clone()).unwrap_or_default())
            .collect()
    };
    let mut of_b: HashMap<Vec<Vec<u8>>, Vec<RecordDigest>> = HashMap::new();
    b.into_iter().for_each(|record| of_b.entry(key(&record)).or_default().push(record));
    for ours in a {
        let theirs =
            of_b.get_mut(&key(&ours)).and_then(|same| (!same.is_empty()).then(|| same.remove(0)));
        let how = match theirs {
            None => How::MissingInB,
            Some(theirs) => match fields(name, &ours, &theirs) {
                None => {
                    compared.kept_elsewhere += 1;
                    continue;
                }
                Some(fields) if fields.is_empty() => continue,
                Some(fields) => How::Fields(fields),
            },
        };
        compared.differences.push(Difference {
            name: name.clone(),
            which: which(name, &ours),
            how,
        });
    }
    let mut rest: Vec<RecordDigest> = of_b.into_values().flatten().collect();
    rest.sort_by(|one, other| one.digest.cmp(&other.digest));
    for theirs in rest {
        let (which, how) = (which(name, &theirs), How::MissingInA);
        compared.differences.push(Difference { name: name.clone(), which, how });
    }
    compared
}

/// The name of a field that differs, with the values of both sides where they are known.
type Differing = (String, Option<(String, String)>);

/// The fields that differ. `None`: only where the bytes of an artifact are, which both sides have.
fn fields(name: &Name, a: &RecordDigest, b: &RecordDigest) -> Option<Vec<Differing>> {
    // In files it may have none yet.
    let unnumbered = matches!(name, Name::Step(..)) && (a.step_id.is_none() || b.step_id.is_none());
    let mut differing = Vec::new();
    for ours in &a.fields {
        let theirs = field(b, &ours.name);
        if theirs.is_some_and(|theirs| theirs.digest == ours.digest)
            || unnumbered && ours.name == "step_id"
        {
            continue;
        }
        let values = match (&ours.value, theirs.and_then(|theirs| theirs.value.clone())) {
            (Some(ours), Some(theirs)) => Some((ours.clone(), theirs)),
            _ => None,
        };
        differing.push((ours.name.clone(), values));
    }
    let only_where = !differing.is_empty()
        && differing.iter().all(|(name, _)| name == "storage_type" || name == "storage_path");
    let same_bytes = a.bytes_sha256.is_some() && a.bytes_sha256 == b.bytes_sha256;
    (!(only_where && same_bytes)).then_some(differing)
}

/// Tells one of several apart.
fn which(name: &Name, record: &RecordDigest) -> Option<String> {
    match name {
        Name::Artifacts(_) => {
            let named = field(record, "artifact_name").and_then(|field| field.value.clone());
            Some(named.unwrap_or_else(|| record.artifact_id().to_owned()))
        }
        Name::Points(_) => record.timestamp.as_ref().map(text::exact_time),
        _ => None,
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Name::Execution(id) => write!(f, "execution {id}")?,
            Name::Step(id, step_id) => write!(f, "step {step_id} of {id}")?,
            Name::UnnumberedStep(id, key) => write!(f, "step {key} of {id}")?,
            Name::Artifacts(id) => {
                write!(f, "artifact {} of {id}", self.which.as_deref().unwrap_or("?"))?;
            }
            Name::Points(id) => {
                write!(f, "point of {id} at {}", self.which.as_deref().unwrap_or("?"))?;
            }
            Name::Configuration { app_id, app_name, sub_app_id, sub_app_name, version } => {
                write!(f, "configuration {version} of {app_name}")?;
                if let Some(number) = app_id {
                    write!(f, " ({number})")?;
                }
                match (sub_app_name, sub_app_id) {
                    (Some(part), _) => write!(f, "/{part}")?,
                    (None, Some(part)) => write!(f, "/{part}")?,
                    (None, None) => {}
                }
            }
        }
        match &self.how {
            How::MissingInA => f.write_str(": missing in A"),
            How::MissingInB => f.write_str(": missing in B"),
            How::Fields(fields) => {
                let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
                let verb = if names.len() == 1 { "differs" } else { "differ" };
                write!(f, ": {} {verb}", names.join(", "))
            }
        }
    }
}

impl Difference {
    /// For reports.
    pub fn json(&self) -> Value {
        let mut all = match &self.name {
            Name::Execution(id) => json!({ "kind": "execution", "execution_id": id }),
            Name::Step(id, step_id) => {
                json!({ "kind": "step", "execution_id": id, "step_id": step_id })
            }
            Name::UnnumberedStep(id, key) => {
                json!({ "kind": "step", "execution_id": id, "step_key": key })
            }
            Name::Artifacts(id) => {
                json!({ "kind": "artifact", "execution_id": id, "artifact": self.which })
            }
            Name::Points(id) => {
                json!({ "kind": "metric_point", "execution_id": id, "timestamp": self.which })
            }
            Name::Configuration { app_id, app_name, sub_app_id, sub_app_name, version } => json!({
                "kind": "configuration",
                "app_id": app_id,
                "app_name": app_name,
                "sub_app_id": sub_app_id,
                "sub_app_name": sub_app_name,
                "version": version,
            }),
        };
        match &self.how {
            How::MissingInA => all["missing_in"] = json!("A"),
            How::MissingInB => all["missing_in"] = json!("B"),
            How::Fields(fields) => {
                let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
                all["fields"] = json!(names);
                let values = fields.iter().filter_map(|(name, values)| {
                    let (a, b) = values.as_ref()?;
                    Some((name.clone(), json!({ "A": a, "B": b })))
                });
                let values: serde_json::Map<String, Value> = values.collect();
                if !values.is_empty() {
                    all["values"] = Value::Object(values);
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ExportKind;

    fn record(kind: ExportKind, digest: u8, fields: &[(&str, u8)]) -> RecordDigest {
        RecordDigest {
            kind: kind.into(),
            execution_id: "run".to_owned(),
            digest: vec![digest; 32],
            fields: fields
                .iter()
                .map(|(name, digest)| FieldDigest {
                    name: (*name).to_owned(),
                    digest: vec![*digest; 32],
                    value: Some(digest.to_string()),
                })
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn equal_points_count_once_and_others_are_paired_by_their_time() {
        let name = Name::Points("run".to_owned());
        let point = |digest, at, n| {
            record(ExportKind::Metrics, digest, &[("timestamp", at), ("metrics", n)])
        };
        let a = vec![point(1, 1, 1), point(1, 1, 1), point(2, 2, 2), point(3, 3, 3)];
        let b = vec![point(1, 1, 1), point(4, 2, 9), point(5, 5, 5)];
        let compared = compare(&name, a, b);
        let how: Vec<_> = compared.differences.into_iter().map(|found| found.how).collect();
        let metrics = ("metrics".to_owned(), Some(("2".to_owned(), "9".to_owned())));
        assert_eq!(how, [How::Fields(vec![metrics]), How::MissingInB, How::MissingInA]);
    }

    #[test]
    fn where_bytes_are_kept_is_each_sides_own_affair_if_both_have_them() {
        let name = Name::Artifacts("run".to_owned());
        let artifact = |digest, path, bytes: Option<&str>| RecordDigest {
            bytes_sha256: bytes.map(str::to_owned),
            ..record(ExportKind::Artifacts, digest, &[("artifact_name", 1), ("storage_path", path)])
        };
        let same = compare(&name, vec![artifact(1, 1, Some("x"))], vec![artifact(2, 2, Some("x"))]);
        assert_eq!((same.differences.len(), same.kept_elsewhere), (0, 1));
        for (a, b) in [(None, None), (Some("x"), None), (Some("x"), Some("y"))] {
            let found = compare(&name, vec![artifact(1, 1, a)], vec![artifact(2, 2, b)]);
            assert_eq!((found.differences.len(), found.kept_elsewhere), (1, 0), "{a:?} {b:?}");
        }
    }

    #[test]
    fn a_record_that_is_there_twice_is_missing_once() {
        let name = Name::Execution("run".to_owned());
        let one = || record(ExportKind::Executions, 1, &[("status", 1)]);
        assert_eq!(compare(&name, vec![one()], vec![one()]), Compared::default());
        let twice = compare(&name, vec![one(), one()], vec![one()]);
        assert_eq!(twice.differences.len(), 1);
        assert_eq!(twice.differences[0].how, How::MissingInB);
        assert_eq!(twice.differences[0].to_string(), "execution run: missing in B");
    }
}
