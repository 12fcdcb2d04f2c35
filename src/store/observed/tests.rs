//! Every method of every trait is in the table.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::clock::ManualClock;
use crate::telemetry;

/// What answers from memory, or ends the store: there is nothing to measure.
const NOT_OPERATIONS: [(&str, &str); 9] = [
    ("AuditStore", "is_settled"),
    ("AuditStore", "own_head"),
    ("MetricStore", "arrivals_elsewhere"),
    ("MetricStore", "least_id"),
    ("MetricStore", "metric_lanes"),
    ("Store", "close"),
    ("Store", "info"),
    ("Store", "lanes"),
    ("Store", "log"),
];

fn table<S: Role + ?Sized>() -> Vec<(String, String)> {
    let methods = S::OPERATIONS.iter();
    methods.map(|(method, _)| (S::TRAIT.to_owned(), (*method).to_owned())).collect()
}

/// Trait and method of every trait that a backend implements, as they are written in `store/*.rs`.
fn written() -> BTreeSet<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/store");
    let mut methods = BTreeSet::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let file = file.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let mut name = None;
        for line in text.lines() {
            if let Some(line) = line.strip_prefix("pub trait ") {
                // Those of a store as a whole, not what it hands out.
                let of_store = line.contains(": Send + Sync + 'static {");
                name = of_store.then(|| line.split(':').next().unwrap().to_owned());
            } else if line == "}" {
                name = None;
            }
            let line = line.trim_start().trim_start_matches("async ");
            if let (Some(name), Some(rest)) = (&name, line.strip_prefix("fn ")) {
                methods.insert((name.clone(), rest.split('(').next().unwrap().to_owned()));
            }
        }
    }
    methods
}

#[test]
fn every_method_of_every_store_trait_is_an_operation() {
    let mut observed: BTreeSet<(String, String)> = [
        table::<dyn Store>(),
        table::<dyn ConfigurationStore>(),
        table::<dyn MetricStore>(),
        table::<dyn ArtifactStore>(),
        table::<dyn RetentionStore>(),
        table::<dyn RollupStore>(),
        table::<dyn SearchStore>(),
        table::<dyn KeyStore>(),
        table::<dyn AuditStore>(),
        table::<dyn NotificationStore>(),
        table::<dyn MirrorStore>(),
        table::<dyn Leads>(),
        table::<dyn Inspect>(),
        table::<dyn ScanStore>(),
    ]
    .concat()
    .into_iter()
    .collect();
    assert!(observed.len() > 60, "{observed:?}");
    observed.extend(NOT_OPERATIONS.map(|(role, method)| (role.to_owned(), method.to_owned())));
    assert_eq!(observed, written());
}

struct Away;

#[async_trait]
impl Leads for Away {
    async fn lead(&self, _: &str, _: &str, _: Duration, _: Claim) -> Result<bool> {
        Ok(true)
    }

    async fn cede(&self, _: &str, _: &str, _: bool) -> Result<()> {
        Err(Error::unavailable("away"))
    }
}

#[tokio::test]
async fn an_operation_is_timed_and_its_failure_counted() {
    telemetry::metrics::install();
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(0));
    let observer = Observer { clock, signals: Arc::default() };
    let observed = Observed::<dyn Leads>::new(Arc::new(Away), &observer);
    assert!(observed.lead("a", "b", Duration::ZERO, Claim::IfFree).await.unwrap());
    assert!(observed.cede("a", "b", false).await.is_err());
    let text = telemetry::metrics::render();
    for line in [
        "stepwell_store_operation_seconds_count{operation=\"lead\"} 2",
        "stepwell_store_errors_total{operation=\"lead\",kind=\"away\"} 1",
        "stepwell_store_errors_total{operation=\"lead\",kind=\"failed\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nnot in\n{text}");
    }
}
