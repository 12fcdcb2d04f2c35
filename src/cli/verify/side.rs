//! One of the two sides: totals of everything, records of some ranges, and a few records by name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::name::Name;
use super::spill::Spill;
use crate::cli::artifacts::progress;
use crate::cli::connection::Connection;
use crate::cli::exit::{Failure, Result};
use crate::cli::import::{AssumedStatus, Found, Pass, Read, Rules, read_files};
use crate::domain::limits::{DIGEST_KEYS, Limits};
use crate::domain::plain::{Part, RANGES, Total, range_of};
use crate::domain::query::ExecutionFilter;
use crate::proto;
use crate::proto::get_digests_response::Part as Told;
use crate::proto::ingest_request::Write;
use crate::rpc::put_digests::{self, Put};
use crate::rpc::verify;

/// Records that are looked at again in one request.
const LOOKED_AT: usize = DIGEST_KEYS / 4;

/// Totals of all ranges of each kind.
#[derive(Default)]
pub struct Totals {
    pub by_part: HashMap<Part, Vec<Total>>,
    /// Of the log, when reading began.
    pub position: Option<i64>,
    /// What is there and is no record: documents without a usable id, or lines that cannot be imported.
    pub unreadable: u64,
}

impl Totals {
    fn of(&mut self, part: Part) -> &mut Vec<Total> {
        self.by_part.entry(part).or_insert_with(|| vec![Total::default(); RANGES])
    }

    pub fn total(&self, part: Part, range: usize) -> Total {
        self.by_part.get(&part).map(|ranges| ranges[range]).unwrap_or_default()
    }

    pub fn count(&self, part: Part) -> u64 {
        let ranges = self.by_part.get(&part);
        ranges.map_or(0, |ranges| ranges.iter().map(|total| total.count).sum())
    }
}

/// Ranges of each kind, by number.
pub type Selected = BTreeMap<Part, Vec<usize>>;

/// Told how many records were read so far.
pub type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);

pub enum Side {
    Server(Server),
    Files(Files),
}

impl Side {
    pub async fn totals(&mut self, progress: Progress<'_>) -> Result<Totals> {
        match self {
            Side::Server(server) => server.totals(progress).await,
            Side::Files(files) => files.totals(progress).await,
        }
    }

    pub async fn records(
        &mut self,
        selected: &Selected,
        spill: &mut Spill,
        progress: Progress<'_>,
    ) -> Result<()> {
        match self {
            Side::Server(server) => server.records(selected, spill, progress).await,
            Side::Files(files) => files.records(selected, spill, progress).await,
        }
    }

    /// These records, with their fields, as they are now; by `kept` where a side does not change.
    pub async fn look(
        &self,
        names: &[Name],
        kept: &HashMap<Name, Vec<proto::RecordDigest>>,
    ) -> Result<HashMap<Name, Vec<proto::RecordDigest>>> {
        match self {
            Side::Server(server) => server.look(names).await,
            Side::Files(_) => {
                let found =
                    names.iter().filter_map(|name| Some((name.clone(), kept.get(name)?.clone())));
                Ok(found.collect())
            }
        }
    }

    pub fn may_change(&self) -> bool {
        matches!(self, Side::Server(_))
    }
}

/// Another server, or one in this process.
pub struct Server {
    pub connection: Connection,
    pub filter: proto::ExecutionFilter,
    pub values: bool,
}

impl Server {
    /// Reads from the beginning to the end, anew where the stream breaks.
    async fn read(
        &self,
        request: &proto::GetDigestsRequest,
        mut take: impl FnMut(Option<Told>) -> Result<()>,
    ) -> Result<()> {
        let bar = indicatif::ProgressBar::hidden();
        let mut patience = progress::Patience::default();
        let mut answers = 0;
        loop {
            // Whatever was taken before is forgotten.
            take(None)?;
            match self.stream(request, &mut answers, &mut take).await? {
                Ok(()) => return Ok(()),
                Err(status) => patience.wait(status, answers, &bar).await?,
            }
        }
    }

    /// Until the stream ends. The outer error is one of taking.
    async fn stream(
        &self,
        request: &proto::GetDigestsRequest,
        answers: &mut u64,
        take: &mut impl FnMut(Option<Told>) -> Result<()>,
    ) -> Result<std::result::Result<(), Status>> {
        let mut stream = match self.connection.verify().get_digests(request.clone()).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        loop {
            match stream.message().await {
                Ok(Some(answer)) => {
                    *answers += 1;
                    let complete = matches!(answer.part, Some(Told::Complete(_)));
                    if let Some(part) = answer.part {
                        take(Some(part))?;
                    }
                    if complete {
                        return Ok(Ok(()));
                    }
                }
                Ok(None) => return Ok(Err(Status::unavailable("the digests ended early"))),
                Err(status) => return Ok(Err(status)),
            }
        }
    }

    async fn totals(&self, progress: Progress<'_>) -> Result<Totals> {
        let mut totals = Totals::default();
        let request = proto::GetDigestsRequest {
            filter: Some(self.filter.clone()),
            level: proto::DigestLevel::Ranges.into(),
            ..Default::default()
        };
        self.read(&request, |told| {
            match told {
                None => totals = Totals::default(),
                Some(Told::Begun(begun)) => totals.position = begun.position,
                Some(Told::Progress(so_far)) => progress(so_far.records.unsigned_abs()),
                Some(Told::Ranges(told)) => {
                    for range in told.ranges {
                        let (Some(part), Ok(number), Ok(sum)) = (
                            verify::part(range.kind),
                            usize::try_from(range.range),
                            range.digest.as_slice().try_into(),
                        ) else {
                            return Err(not_understood());
                        };
                        let total = Total { count: range.count.unsigned_abs(), sum };
                        *totals.of(part).get_mut(number).ok_or_else(not_understood)? = total;
                    }
                }
                Some(Told::Complete(complete)) => {
                    totals.unreadable = complete.unreadable.unsigned_abs();
                }
                Some(Told::Records(_)) => {}
            }
            Ok(())
        })
        .await?;
        Ok(totals)
    }

    async fn records(
        &self,
        selected: &Selected,
        spill: &mut Spill,
        progress: Progress<'_>,
    ) -> Result<()> {
        let selections = selected.iter().map(|(part, ranges)| proto::DigestSelection {
            kind: verify::kind(*part).into(),
            ranges: ranges.iter().filter_map(|range| i32::try_from(*range).ok()).collect(),
        });
        let request = proto::GetDigestsRequest {
            filter: Some(self.filter.clone()),
            selections: selections.collect(),
            level: proto::DigestLevel::Records.into(),
            ..Default::default()
        };
        self.read(&request, |told| {
            match told {
                None => spill.clear()?,
                Some(Told::Records(told)) => {
                    for record in &told.records {
                        spill.add(range_of(place(record)), record)?;
                    }
                }
                Some(Told::Progress(so_far)) => progress(so_far.records.unsigned_abs()),
                Some(Told::Begun(_) | Told::Ranges(_) | Told::Complete(_)) => {}
            }
            Ok(())
        })
        .await
    }

    async fn look(&self, names: &[Name]) -> Result<HashMap<Name, Vec<proto::RecordDigest>>> {
        let mut found: HashMap<Name, Vec<proto::RecordDigest>> = HashMap::new();
        for some in names.chunks(LOOKED_AT) {
            let request = proto::GetDigestsRequest {
                filter: Some(self.filter.clone()),
                level: proto::DigestLevel::Fields.into(),
                keys: some.iter().filter_map(Name::key).collect(),
                include_values: self.values,
                ..Default::default()
            };
            let mut records = Vec::new();
            self.read(&request, |told| {
                match told {
                    None => records.clear(),
                    Some(Told::Records(told)) => records.extend(told.records),
                    Some(_) => {}
                }
                Ok(())
            })
            .await?;
            for record in records {
                found.entry(Name::of(&record)).or_default().push(record);
            }
        }
        // All configurations of an app come for one of them.
        let wanted: HashSet<&Name> = names.iter().collect();
        found.retain(|name, _| wanted.contains(name));
        Ok(found)
    }
}

fn not_understood() -> Failure {
    Failure::CouldNotStart("the server sent digests that cannot be understood".to_owned())
}

/// What decides on the range of a record.
pub fn place(record: &proto::RecordDigest) -> &str {
    match &record.configuration {
        Some(key) => key.app_name(),
        None => &record.execution_id,
    }
}

/// Files as `import` reads them.
pub struct Files {
    pub found: Vec<Found>,
    pub filter: ExecutionFilter,
    pub assume: Option<AssumedStatus>,
    pub values: bool,
    /// Told of lines that cannot be imported.
    pub refused: Box<dyn FnMut(&str) + Send>,
}

impl Files {
    /// Goes over all records that match, executions first.
    async fn each(
        &mut self,
        mut take: impl FnMut(Put, bool) -> Result<()>,
        mut refused: impl FnMut(String),
    ) -> Result<()> {
        let rules = Rules { pass: Pass::Every, assume: self.assume, message_bytes: usize::MAX };
        let limits = Limits::default();
        let mut batches = read_files(self.found.iter().cloned().enumerate().collect(), rules);
        // Of executions that match, where not all do.
        let mut matching: Option<HashSet<[u8; 16]>> = (!self.filter.is_empty()).then(HashSet::new);
        while let Some(batch) = batches.recv().await {
            for read in batch {
                let (file, line, why) = match read {
                    Read::Write(outgoing) => {
                        let unnumbered = matches!(&outgoing.write, Write::PutStep(step) if step.step_id.is_none());
                        match put_digests::of(&limits, outgoing.write) {
                            Ok(records) => {
                                for record in records {
                                    if matches(&self.filter, &mut matching, &record) {
                                        take(record, unnumbered)?;
                                    }
                                }
                                continue;
                            }
                            Err(why) => (outgoing.file, outgoing.line, why),
                        }
                    }
                    Read::Refused { file, line, reason } => (file, line, reason),
                    Read::Unreadable { reason, .. } => return Err(Failure::CouldNotStart(reason)),
                    Read::Later { .. } | Read::Progress { .. } => continue,
                };
                refused(format!("{}:{line}: {why}", self.found[file].path.display()));
            }
        }
        Ok(())
    }

    async fn totals(&mut self, progress: Progress<'_>) -> Result<Totals> {
        let mut totals = Totals::default();
        let (mut buffer, mut records) = (Vec::new(), 0);
        let mut said = std::mem::replace(&mut self.refused, Box::new(|_| {}));
        let mut unreadable = 0;
        let take = |record: Put, _| {
            let (part, range) = (record.part(), record.range());
            totals.of(part)[range].add(&record.digest(&mut buffer));
            records += 1;
            if records % 1000 == 0 {
                progress(records);
            }
            Ok(())
        };
        let done = self
            .each(take, |line| {
                unreadable += 1;
                said(&line);
            })
            .await;
        self.refused = said;
        done?;
        totals.unreadable = unreadable;
        Ok(totals)
    }

    async fn records(
        &mut self,
        selected: &Selected,
        spill: &mut Spill,
        progress: Progress<'_>,
    ) -> Result<()> {
        let values = self.values;
        let (mut buffer, mut records) = (Vec::new(), 0);
        let take = |record: Put, unnumbered| {
            records += 1;
            if records % 1000 == 0 {
                progress(records);
            }
            let range = record.range();
            let is_selected = |ranges: &Vec<usize>| ranges.binary_search(&range).is_ok();
            if !selected.get(&record.part()).is_some_and(is_selected) {
                return Ok(());
            }
            let mut record = record.told(values, &mut buffer);
            if unnumbered {
                // Whichever it gets from a server.
                record.step_id = None;
            }
            spill.add(range, &record).map_err(|error: io::Error| error.into())
        };
        self.each(take, |_| {}).await
    }
}

/// Whether a record belongs to an execution that matches.
fn matches(
    filter: &ExecutionFilter,
    matching: &mut Option<HashSet<[u8; 16]>>,
    record: &Put,
) -> bool {
    let Some(matching) = matching else { return true };
    let hash = Sha256::digest(record.execution_id().as_bytes());
    let short: [u8; 16] = std::array::from_fn(|n| hash[n]);
    match record.matches(filter) {
        None => matching.contains(&short),
        Some(matches) => {
            if matches && record.part() == Part::Executions {
                matching.insert(short);
            }
            matches
        }
    }
}
