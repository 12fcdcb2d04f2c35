//! `stepwell verify A B`: whether two sides hold the same records, and which differ.
//!
//! Totals of ranges first; then, of ranges that differ, records, on disk until they are compared; then the records that
//! differ once more, by name, before anything is told: both sides may change all the while.

mod difference;
mod name;
mod side;
mod spill;

use std::collections::{BTreeMap, HashMap};
use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::connection::{Connection, ServerArgs, call};
use super::exit::{Exit, Failure, Result};
use super::filter::FilterArgs;
use super::import::{self, AssumedStatus};
use super::mirror;
use super::output::{Output, message};
use super::source::{Opened, Source};
use super::table::{self, Column};
use super::text;
use crate::clock::Clock;
use crate::domain::limits::Limits;
use crate::domain::plain::{Part, RANGES};
use crate::proto;
use crate::rpc::{requests, verify};
use difference::{Compared, Difference, How, compare};
use name::Name;
use side::{Files, Selected, Server, Side, Totals};
use spill::{PARTS, Spill};

/// How long a record has to be as it is on both sides before it is told to differ: a mirror may still bring it.
const SETTLED: Duration = Duration::from_secs(3);
/// How often it is looked at records that go on changing.
const LOOKS: usize = 20;
/// Records that seem to differ and are looked at together.
const AT_ONCE: usize = 5_000;
/// Differences that are printed; the report has them all.
const PRINTED: u64 = 100;

/// Shown by `--help`.
pub const CODES_HELP: &str = "\
Exit codes:
  0   equal
  1   different
  2   not checked: one side could not be read, or records went on changing";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One side: a folder of files that `import` reads, mongodb://HOST:PORT/DATABASE, which is only read, or
    /// grpc://HOST:PORT.
    #[arg(value_name = "A")]
    a: Source,
    /// The other side.
    #[arg(value_name = "B")]
    b: Source,
    /// Write every difference to this file, one JSON object per line.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Also show the values that differ.
    #[arg(long)]
    values: bool,
    /// In folders: the status of records whose own status is null or absent, as with `import`.
    #[arg(long, value_enum, value_name = "STATUS")]
    assume_status: Option<AssumedStatus>,
    /// Tell B, a server, what came out: `mirror finish NAME` goes by it.
    #[arg(long, value_name = "NAME")]
    mirror: Option<String>,
    #[command(flatten)]
    filter: FilterArgs,
}

pub async fn run(
    args: &Args,
    server: &ServerArgs,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let verified = compare_sides(args, server, output, clock).await;
    // Nothing that goes wrong is a difference.
    verified.map_err(|failure| match failure {
        Failure::Refused(why) => Failure::CouldNotStart(why),
        other => other,
    })
}

async fn compare_sides(
    args: &Args,
    server: &ServerArgs,
    output: &Output,
    clock: &dyn Clock,
) -> Result<Exit> {
    let filter = args.filter.resolve(clock.now());
    if args.mirror.is_some() {
        if filter != proto::ExecutionFilter::default() {
            return Err(Failure::CouldNotStart(
                "--mirror is for everything: without a filter".to_owned(),
            ));
        }
        if !matches!(args.b, Source::Server(_)) {
            return Err(Failure::CouldNotStart("--mirror: B must be grpc://HOST:PORT".to_owned()));
        }
    }
    let (opened_a, opened_b) = (Opened::open(&args.a, server)?, Opened::open(&args.b, server)?);
    let side = |source: &Source, opened: &Option<Opened>, letter: char| -> Result<Side> {
        Ok(match (source, opened) {
            (_, Some(opened)) => Side::Server(Server {
                connection: opened.connection.clone(),
                filter: filter.clone(),
                values: args.values,
            }),
            (Source::Files(path), None) => Side::Files(Files {
                found: import::find(std::slice::from_ref(path))?,
                filter: requests::Check::new(&Limits::default()).filter(Some(&filter)),
                assume: args.assume_status,
                values: args.values,
                refused: Box::new(move |line| message(&format!("{letter}: {line}"))),
            }),
            (other, None) => {
                return Err(Failure::CouldNotStart(format!("{other}: cannot be opened")));
            }
        })
    };
    let (a, b) = (side(&args.a, &opened_a, 'A')?, side(&args.b, &opened_b, 'B')?);
    for opened in [&opened_a, &opened_b].into_iter().flatten() {
        reachable(&opened.connection).await?;
    }
    if let Some((name, b)) = args.mirror.as_ref().zip(opened_b.as_ref()) {
        of_this_source(name, &b.connection, &args.a).await?;
    }
    let report = match &args.report {
        None => None,
        Some(path) => {
            let file = std::fs::File::create(path)
                .map_err(|error| Failure::CouldNotStart(format!("{}: {error}", path.display())))?;
            Some(BufWriter::new(file))
        }
    };
    let found =
        Found { output, report, told: 0, by_part: BTreeMap::new(), kept_elsewhere: 0, changing: 0 };
    let mut under_way = Verify { sides: [a, b], found, bar: bar() };
    let done = under_way.all().await;
    under_way.bar.finish_and_clear();
    let totals = done;
    let mirrored = args.mirror.as_ref().zip(opened_b.as_ref());
    let mirrored = mirrored.map(|(name, b)| (name.clone(), b.connection.clone()));
    for opened in [opened_a, opened_b].into_iter().flatten() {
        opened.close().await;
    }
    let totals = totals?;
    let (position, differences) = (totals[0].position, under_way.found.told);
    let exit = under_way.found.summary(&totals)?;
    if let Some((name, b)) = mirrored {
        let differences = i64::try_from(differences).unwrap_or(i64::MAX);
        tell_mirror(name, &b, position, exit == Exit::Done, differences).await?;
    }
    Ok(exit)
}

/// What comes out says something of a mirror only if A is what it is one of.
async fn of_this_source(name: &str, target: &Connection, a: &Source) -> Result<()> {
    let request = proto::MirrorServiceGetRequest { name: name.to_owned() };
    let mirror = target.mirrors().get(call(request)).await?.into_inner().mirror.unwrap_or_default();
    if mirror::is_of(&mirror.source, a) {
        return Ok(());
    }
    let (of, is) = (mirror.source, a.place());
    Err(Failure::CouldNotStart(format!("--mirror: {name} is a mirror of {of}, and A is {is}")))
}

/// Tells the target of a mirror what comparing it with its source has shown.
async fn tell_mirror(
    name: String,
    target: &Connection,
    position: Option<i64>,
    clean: bool,
    differences: i64,
) -> Result<()> {
    let Some(position) = position else {
        return Err(Failure::Refused(
            "A has no log of changes: it is no source of a mirror".to_owned(),
        ));
    };
    let verification = proto::MirrorVerification { clean, position, differences, at: None };
    let told = proto::mirror_service_advance_request::Told::Verification(verification);
    let request = proto::MirrorServiceAdvanceRequest { name, session: 0, told: Some(told) };
    target.mirrors().advance(call(request)).await?;
    Ok(())
}

/// A server that is not there, or too old, is known before anything is read.
async fn reachable(connection: &Connection) -> Result<()> {
    let info = connection.admin().get_server_info(call(proto::GetServerInfoRequest {})).await;
    let info = info.map_err(Failure::from)?.into_inner();
    match info.features.iter().any(|feature| feature == "verify") {
        true => Ok(()),
        false => Err(Failure::CouldNotStart(format!(
            "the server of version {} cannot be verified: it needs a newer one",
            info.version
        ))),
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if std::io::stderr().is_terminal()
        && let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed}  {wide_msg}")
    {
        bar.set_style(style);
        bar.enable_steady_tick(Duration::from_millis(200));
    }
    bar
}

struct Verify<'a> {
    sides: [Side; 2],
    found: Found<'a>,
    bar: ProgressBar,
}

/// Records by name.
type Records = HashMap<Name, Vec<proto::RecordDigest>>;

impl Verify<'_> {
    async fn all(&mut self) -> Result<[Totals; 2]> {
        let read = [AtomicU64::new(0), AtomicU64::new(0)];
        let bar = self.bar.clone();
        let show = |what: &'static str| {
            let (a, b) = (read[0].load(Ordering::Relaxed), read[1].load(Ordering::Relaxed));
            bar.set_message(format!("{what}: {a} records of A, {b} of B"));
        };
        let progress = |side: usize, what: &'static str| {
            let (read, show) = (&read, &show);
            move |records| {
                read[side].store(records, Ordering::Relaxed);
                show(what);
            }
        };
        let [a, b] = &mut self.sides;
        let (of_a, of_b) = (progress(0, "reading"), progress(1, "reading"));
        let (of_a, of_b) = tokio::join!(a.totals(&of_a), b.totals(&of_b));
        let totals = [of_a?, of_b?];
        let selected = differing(&totals);
        if selected.is_empty() {
            return Ok(totals);
        }
        let (mut spill_a, mut spill_b) = (Spill::new()?, Spill::new()?);
        let what = "reading what differs";
        let (of_a, of_b) = (progress(0, what), progress(1, what));
        let (done_a, done_b) = tokio::join!(
            a.records(&selected, &mut spill_a, &of_a),
            b.records(&selected, &mut spill_b, &of_b)
        );
        done_a?;
        done_b?;
        let mut seeming = Seeming::default();
        for part in 0..PARTS {
            let (a, b) = (spill_a.part(part)?, spill_b.part(part)?);
            let (of_a, of_b) = (numbers(&a), numbers(&b));
            seeming.add(by_name(a, &of_b), by_name(b, &of_a));
            while seeming.names.len() >= AT_ONCE {
                self.again(&seeming.take(AT_ONCE), &seeming).await?;
            }
        }
        let left = seeming.take(AT_ONCE);
        self.again(&left, &seeming).await?;
        Ok(totals)
    }

    /// Looks again at what seems to differ, until it has stayed as it is for a while.
    async fn again(&mut self, names: &[Name], seeming: &Seeming) -> Result<()> {
        let mut names = names.to_vec();
        if names.is_empty() {
            return Ok(());
        }
        let mut before: Option<(Records, Records)> = None;
        let may_change = self.sides.iter().any(Side::may_change);
        for _ in 0..LOOKS {
            self.bar.set_message(format!("looking again at {} records", names.len()));
            let began = Instant::now();
            let (of_a, of_b) = tokio::join!(
                self.sides[0].look(&names, &seeming.a),
                self.sides[1].look(&names, &seeming.b)
            );
            let (mut of_a, mut of_b) = (of_a?, of_b?);
            let mut left = Vec::new();
            for name in names {
                let (ours, theirs) = (of_a.get(&name), of_b.get(&name));
                let all = |records: Option<&Vec<proto::RecordDigest>>| {
                    records.cloned().unwrap_or_default()
                };
                let compared = compare(&name, all(ours), all(theirs));
                let same = |before: &Records, now: Option<&Vec<proto::RecordDigest>>| {
                    digests(before.get(&name)) == digests(now)
                };
                let settled = !may_change
                    || before.as_ref().is_some_and(|(a, b)| same(a, ours) && same(b, theirs));
                if compared.differences.is_empty() || settled {
                    self.found.add(compared)?;
                    continue;
                }
                left.push(name);
            }
            if left.is_empty() {
                return Ok(());
            }
            let wanted: std::collections::HashSet<&Name> = left.iter().collect();
            of_a.retain(|name, _| wanted.contains(name));
            of_b.retain(|name, _| wanted.contains(name));
            before = Some((of_a, of_b));
            names = left;
            tokio::time::sleep_until(began + SETTLED).await;
        }
        self.found.changing += names.len() as u64;
        for name in names.iter().take(3) {
            let difference = Difference { name: name.clone(), which: None, how: How::MissingInA };
            let named = difference.to_string();
            message(&format!(
                "note: {} goes on changing",
                named.trim_end_matches(": missing in A")
            ));
        }
        Ok(())
    }
}

/// Records that seem to differ, with what sides that do not change have of them.
#[derive(Default)]
struct Seeming {
    names: std::collections::VecDeque<Name>,
    a: Records,
    b: Records,
    /// Names that were taken, whose records are kept until the next are.
    taken: Vec<Name>,
}

impl Seeming {
    fn add(&mut self, mut a: Records, mut b: Records) {
        let mut names: Vec<Name> = a
            .iter()
            .filter(|(name, records)| digests(Some(records)) != digests(b.get(*name)))
            .map(|(name, _)| name.clone())
            .chain(b.keys().filter(|name| !a.contains_key(*name)).cloned())
            .collect();
        names.sort_unstable();
        for name in &names {
            self.a.extend(a.remove_entry(name));
            self.b.extend(b.remove_entry(name));
        }
        self.names.extend(names);
    }

    fn take(&mut self, most: usize) -> Vec<Name> {
        for name in std::mem::take(&mut self.taken) {
            self.a.remove(&name);
            self.b.remove(&name);
        }
        let most = most.min(self.names.len());
        self.taken = self.names.drain(..most).collect();
        self.taken.clone()
    }
}

/// Ranges that differ, of each kind.
fn differing(totals: &[Totals; 2]) -> Selected {
    let mut selected = Selected::new();
    for part in Part::ALL {
        let ranges: Vec<usize> = (0..RANGES)
            .filter(|range| totals[0].total(part, *range) != totals[1].total(part, *range))
            .collect();
        if !ranges.is_empty() {
            selected.insert(part, ranges);
        }
    }
    selected
}

/// Numbers of steps by execution and key.
type Numbers = HashMap<(String, String), i32>;

fn numbers(records: &[proto::RecordDigest]) -> Numbers {
    let number = |record: &proto::RecordDigest| {
        let key = record.step_key.clone().filter(|_| record.kind() == proto::ExportKind::Steps)?;
        Some(((record.execution_id.clone(), key), record.step_id?))
    };
    records.iter().filter_map(number).collect()
}

/// Records by name; a step without a number by that of the other side.
fn by_name(records: Vec<proto::RecordDigest>, of_other: &Numbers) -> Records {
    let mut by_name = Records::new();
    for record in records {
        let name = match Name::of(&record) {
            Name::UnnumberedStep(id, key) => match of_other.get(&(id.clone(), key.clone())) {
                Some(step_id) => Name::Step(id, *step_id),
                None => Name::UnnumberedStep(id, key),
            },
            name => name,
        };
        by_name.entry(name).or_default().push(record);
    }
    by_name
}

/// What the records of a name are, in any order.
fn digests(records: Option<&Vec<proto::RecordDigest>>) -> Vec<&[u8]> {
    let mut digests: Vec<&[u8]> =
        records.into_iter().flatten().map(|record| record.digest.as_slice()).collect();
    digests.sort_unstable();
    if records.is_some_and(|records| {
        records.iter().all(|record| record.kind() == proto::ExportKind::Metrics)
    }) {
        digests.dedup();
    }
    digests
}

/// What was found, told as it is found.
struct Found<'a> {
    output: &'a Output,
    report: Option<BufWriter<std::fs::File>>,
    told: u64,
    /// Records that differ, are missing in A, and in B, of each kind.
    by_part: BTreeMap<Part, [u64; 3]>,
    kept_elsewhere: u64,
    /// Records that go on changing.
    changing: u64,
}

impl Found<'_> {
    fn add(&mut self, compared: Compared) -> Result<()> {
        self.kept_elsewhere += compared.kept_elsewhere;
        for difference in &compared.differences {
            let Some(part) = verify::part(difference.name.kind().into()) else { continue };
            let counts = self.by_part.entry(part).or_default();
            counts[match difference.how {
                How::Fields(_) => 0,
                How::MissingInA => 1,
                How::MissingInB => 2,
            }] += 1;
            if let Some(report) = &mut self.report {
                writeln!(report, "{}", difference.json())?;
            }
            self.told += 1;
            if self.told <= PRINTED {
                self.print(difference)?;
            }
        }
        Ok(())
    }

    fn print(&self, difference: &Difference) -> Result<()> {
        if self.output.is_json() {
            return self.output.json(&difference.json());
        }
        self.output.line(&text::one_line(&difference.to_string()))?;
        let How::Fields(fields) = &difference.how else { return Ok(()) };
        for (name, values) in fields {
            if let Some((a, b)) = values {
                self.output.line(&format!("    {name} in A: {}", text::one_line(a)))?;
                self.output.line(&format!("    {name} in B: {}", text::one_line(b)))?;
            }
        }
        Ok(())
    }

    fn summary(mut self, totals: &[Totals; 2]) -> Result<Exit> {
        if let Some(report) = &mut self.report {
            report.flush()?;
        }
        let unreadable = totals[0].unreadable + totals[1].unreadable;
        let differ = self.told > 0;
        let unchecked = self.changing + unreadable > 0;
        let word = match (differ, unchecked) {
            (true, _) => "different",
            (false, true) => "not checked",
            (false, false) => "equal",
        };
        let counts = |part: Part| self.by_part.get(&part).copied().unwrap_or_default();
        if self.output.is_json() {
            let kinds = Part::ALL.map(|part| {
                let [fields, in_a, in_b] = counts(part);
                let of_part = json!({
                    "A": totals[0].count(part),
                    "B": totals[1].count(part),
                    "different": fields,
                    "missing_in_A": in_a,
                    "missing_in_B": in_b,
                });
                (part.collection().to_owned(), of_part)
            });
            let kinds: serde_json::Map<String, Value> = kinds.into_iter().collect();
            self.output.json(&json!({
                "result": word,
                "collections": kinds,
                "differences": self.told,
                "still_changing": self.changing,
                "unreadable_in_A": totals[0].unreadable,
                "unreadable_in_B": totals[1].unreadable,
                "artifacts_kept_elsewhere": self.kept_elsewhere,
            }))?;
        } else {
            if self.told > PRINTED {
                let more = self.told - PRINTED;
                let hint = if self.report.is_some() { "" } else { " (--report FILE has them all)" };
                self.output.line(&format!("... and {more} more{hint}"))?;
            }
            let rows = Part::ALL.into_iter().map(|part| {
                let [fields, in_a, in_b] = counts(part);
                let (a, b) = (totals[0].count(part), totals[1].count(part));
                let numbers = [a, b, fields, in_a, in_b].map(|number| number.to_string().into());
                [vec![part.collection().into()], numbers.into()].concat()
            });
            for line in table::render(self.output, &COLUMNS, rows.collect()) {
                self.output.line(&line)?;
            }
            let notes = [
                (
                    self.changing,
                    "record goes on changing: not checked",
                    "records go on changing: not checked",
                ),
                (
                    unreadable,
                    "document cannot be read: not checked",
                    "documents cannot be read: not checked",
                ),
                (
                    self.kept_elsewhere,
                    "artifact is equal, its bytes are kept in different places",
                    "artifacts are equal, their bytes are kept in different places",
                ),
            ];
            for (number, one, many) in notes {
                if number > 0 {
                    self.output.line(&format!("note: {}", text::count(number, one, many)))?;
                }
            }
            self.output.line(word)?;
        }
        Ok(match (differ, unchecked) {
            (true, _) => Exit::Refused,
            (false, true) => Exit::CouldNotStart,
            (false, false) => Exit::Done,
        })
    }
}

const COLUMNS: [Column; 6] = [
    Column::whole("COLLECTION"),
    Column::whole("IN A").right(),
    Column::whole("IN B").right(),
    Column::whole("DIFFERENT").right(),
    Column::whole("MISSING IN A").right(),
    Column::whole("MISSING IN B").right(),
];
