//! Points of metrics on their way: those of one execution go together, a point being far smaller than a request.

use std::collections::BTreeMap;

use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::outgoing::{ENVELOPE_BYTES, Outgoing};
use super::record::Converted;
use crate::domain::limits::METRIC_POINTS;
use crate::proto;
use crate::proto::ingest_request::Write;

/// Points of one request, as far as it goes: those of one time stay together.
const REQUEST_POINTS: usize = 1000;
const REQUEST_BYTES: usize = 1024 * 1024;
/// Bytes of all points that wait for others.
const WAITING_BYTES: usize = 8 * 1024 * 1024;

#[derive(Default)]
struct Batch {
    /// The line of the first.
    line: u64,
    points: Vec<proto::MetricPoint>,
    bytes: usize,
    left_out: Vec<String>,
}

/// The points of one file that wait.
pub struct Waiting {
    file: usize,
    /// By execution.
    batches: BTreeMap<String, Batch>,
    bytes: usize,
}

impl Waiting {
    pub fn new(file: usize) -> Self {
        Waiting { file, batches: BTreeMap::new(), bytes: 0 }
    }

    /// Adds a point, and returns what is complete by now.
    pub fn add(&mut self, line: u64, converted: Converted<proto::MetricPoint>) -> Vec<Outgoing> {
        let mut point = converted.record;
        let execution_id = std::mem::take(&mut point.execution_id);
        let mut complete = Vec::new();
        let batch = self.batches.entry(execution_id.clone()).or_default();
        let same_time = batch.points.last().is_some_and(|last| last.timestamp == point.timestamp);
        let full = batch.points.len() >= REQUEST_POINTS && !same_time;
        if full || batch.points.len() >= METRIC_POINTS || batch.bytes >= REQUEST_BYTES {
            let done = std::mem::take(batch);
            self.bytes -= done.bytes;
            complete.push(outgoing(self.file, &execution_id, done));
        }
        if batch.points.is_empty() {
            batch.line = line;
        }
        let bytes = point.encoded_len() + 8;
        batch.bytes += bytes;
        self.bytes += bytes;
        batch.points.push(point);
        batch.left_out.extend(converted.left_out);
        if self.bytes >= WAITING_BYTES {
            complete.extend(self.rest());
        }
        complete
    }

    /// All that waits.
    pub fn rest(&mut self) -> Vec<Outgoing> {
        self.bytes = 0;
        let batches = std::mem::take(&mut self.batches).into_iter();
        batches.map(|(execution_id, batch)| outgoing(self.file, &execution_id, batch)).collect()
    }
}

fn outgoing(file: usize, execution_id: &str, batch: Batch) -> Outgoing {
    let documents = batch.points.len() as u64;
    let mut hash = Sha256::new();
    for point in &batch.points {
        hash.update(point.timestamp.unwrap_or_default().encode_to_vec());
        hash.update(format!("{:?}", point.step_id));
        // A map has no order of its own.
        let metrics: BTreeMap<_, _> = point.metrics.iter().collect();
        for (name, value) in metrics {
            hash.update(format!("{name:?}{value:e}"));
        }
    }
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let request = proto::RecordMetricsRequest {
        execution_id: execution_id.to_owned(),
        points: batch.points,
        // The server stores equal points once anyhow; this tells it of a request that is still under way.
        request_id: Some(format!("import-{digest}")),
    };
    Outgoing {
        file,
        line: batch.line,
        documents,
        bytes: request.encoded_len() + ENVELOPE_BYTES,
        write: Write::PutMetrics(request),
        assumed: false,
        left_out: batch.left_out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(waiting: &mut Waiting, line: u64, id: &str, seconds: i64) -> Vec<(u64, u64)> {
        let record = proto::MetricPoint {
            execution_id: id.to_owned(),
            timestamp: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            metrics: [("n".to_owned(), 1.0)].into(),
            step_id: None,
            step_key: None,
        };
        let converted = Converted { record, assumed: false, left_out: Vec::new() };
        let complete = waiting.add(line, converted);
        complete.iter().map(|outgoing| (outgoing.line, outgoing.documents)).collect()
    }

    #[test]
    fn points_of_one_execution_go_together_and_those_of_one_time_always() {
        let mut waiting = Waiting::new(0);
        for line in 1..=REQUEST_POINTS as u64 {
            assert_eq!(add(&mut waiting, 2 * line, "a", line as i64), []);
            assert_eq!(add(&mut waiting, 2 * line + 1, "b", 7), []);
        }
        assert_eq!(add(&mut waiting, 5000, "a", 5000), [(2, REQUEST_POINTS as u64)]);
        assert_eq!(add(&mut waiting, 5001, "b", 7), []);
        assert_eq!(add(&mut waiting, 5002, "b", 8), [(3, REQUEST_POINTS as u64 + 1)]);
        let rest = waiting.rest();
        let rest: Vec<_> =
            rest.iter().map(|outgoing| (outgoing.line, outgoing.documents)).collect();
        assert_eq!(rest, [(5000, 1), (5002, 1)]);
        assert_eq!(waiting.rest(), []);
    }

    #[test]
    fn the_same_points_make_the_same_request() {
        let request = |seconds| {
            let mut waiting = Waiting::new(0);
            add(&mut waiting, 1, "a", seconds);
            match waiting.rest().remove(0).write {
                Write::PutMetrics(request) => request.request_id.expect("an id"),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(request(1), request(1));
        assert_ne!(request(1), request(2));
        assert!(request(1).len() <= crate::domain::limits::REQUEST_ID_CHARACTERS);
    }
}
