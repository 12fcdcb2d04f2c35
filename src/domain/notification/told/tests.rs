//! What is told of each transition.

use super::super::event::Event;
use super::*;
use crate::domain::ExecutionStatus;

use Event::{
    ExecutionCancelRequested as CancelRequested, ExecutionCancelled as Cancelled,
    ExecutionCompleted as Completed, ExecutionFailed as Failed,
    ExecutionHeartbeatTimeout as TimedOut, ExecutionRevived as Revived,
    ExecutionStarted as Started, StepFailed, StepRetried,
};

const LATE: Basis = Basis::Whole { ended: true };
const OLD: Basis = Basis::Whole { ended: false };

fn news(status: Option<Status>) -> ExecutionNews {
    ExecutionNews { status, ..ExecutionNews::default() }
}

fn told(status: Status) -> Option<ExecutionTold> {
    Some(ExecutionTold { status: Some(status), cancel_requested: false })
}

#[test]
fn an_execution_is_told_by_its_transitions() {
    let cancelled = ExecutionNews { cancel_requested: true, ..news(Some(Status::Cancelled)) };
    type Case = (&'static str, Option<ExecutionTold>, Basis, ExecutionNews, &'static [Event]);
    let cases: &[Case] = &[
        ("begun", None, Basis::New, news(Some(Status::Running)), &[Started]),
        ("whole in one", None, Basis::New, cancelled, &[Started, CancelRequested, Cancelled]),
        (
            "again under the id",
            told(Status::Failed),
            Basis::New,
            news(Some(Status::Running)),
            &[Started],
        ),
        ("no status", None, Basis::New, news(None), &[Started]),
        (
            "ended",
            told(Status::Running),
            Basis::Changed,
            news(Some(Status::Completed)),
            &[Completed],
        ),
        ("silent", told(Status::Running), Basis::Changed, news(Some(Status::Silent)), &[TimedOut]),
        ("revived", told(Status::Silent), Basis::Changed, news(Some(Status::Running)), &[Revived]),
        (
            "revived after a wrong end",
            told(Status::Failed),
            Basis::Changed,
            news(Some(Status::Running)),
            &[Revived],
        ),
        (
            "heard at last",
            told(Status::Silent),
            Basis::Changed,
            ExecutionNews { heard: true, ..news(None) },
            &[Failed],
        ),
        (
            "heard, and was told",
            told(Status::Failed),
            Basis::Changed,
            ExecutionNews { heard: true, ..news(None) },
            &[],
        ),
        (
            "replaced a guess",
            told(Status::Silent),
            Basis::Changed,
            news(Some(Status::Cancelled)),
            &[Cancelled],
        ),
        ("metadata", told(Status::Completed), Basis::Changed, news(None), &[]),
        (
            "queued before",
            Some(ExecutionTold::default()),
            Basis::Changed,
            news(Some(Status::Running)),
            &[],
        ),
        (
            "missed its revival",
            told(Status::Failed),
            Basis::Changed,
            news(Some(Status::Failed)),
            &[Failed],
        ),
        ("unknown, ended", None, Basis::Changed, news(Some(Status::Failed)), &[Failed]),
        ("unknown, metadata", None, Basis::Changed, news(None), &[]),
        ("unknown, revived", None, Basis::Changed, news(Some(Status::Running)), &[Revived]),
        ("replaced alike", told(Status::Completed), LATE, news(Some(Status::Completed)), &[]),
        ("replaced, ended", told(Status::Running), LATE, news(Some(Status::Failed)), &[Failed]),
        ("replaced, unknown, ended long ago", None, OLD, news(Some(Status::Failed)), &[]),
        ("replaced, unknown, ended just now", None, LATE, news(Some(Status::Failed)), &[Failed]),
        ("replaced, unknown, running", None, LATE, news(Some(Status::Running)), &[]),
        ("replaced by a word that is none", told(Status::Running), LATE, news(None), &[]),
    ];
    for (name, told, basis, news, expected) in cases {
        assert_eq!(news.events(*told, *basis).0, *expected, "{name}");
    }
    let (_, after) = cancelled.events(told(Status::Running), Basis::Changed);
    assert_eq!(after, ExecutionTold { status: Some(Status::Cancelled), cancel_requested: true });
    let (_, after) = news(None).events(told(Status::Failed), LATE);
    assert_eq!(after.status, Some(Status::Failed), "a word that is none takes nothing back");
    let wish = ExecutionNews { cancel_requested: true, ..news(None) };
    assert_eq!(wish.events(told(Status::Running), Basis::Changed).0, [CancelRequested]);
    assert_eq!(wish.events(Some(after_wish()), Basis::Changed).0, []);
    assert_eq!(wish.events(None, LATE).0, [], "nobody knows since when");
}

fn after_wish() -> ExecutionTold {
    ExecutionTold { status: Some(Status::Running), cancel_requested: true }
}

#[test]
fn a_step_is_told_once_for_each_rise_of_its_retry_count() {
    let step = |failed, retry_count| StepNews { failed, retry_count };
    let told = |failed, retry_count| Some(StepTold { failed, retry_count });
    type Expected = &'static [(Event, i32)];
    type Case = (&'static str, Option<StepTold>, Basis, bool, StepNews, Expected);
    let cases: &[Case] = &[
        ("failed", None, Basis::Changed, true, step(Some(true), None), &[(StepFailed, 1)]),
        (
            "retried",
            told(true, 0),
            Basis::Changed,
            true,
            step(Some(false), Some(1)),
            &[(StepRetried, 2)],
        ),
        (
            "failed and retried in one",
            None,
            Basis::Changed,
            true,
            step(None, Some(1)),
            &[(StepFailed, 1), (StepRetried, 2)],
        ),
        (
            "three attempts in one, the last failed too",
            None,
            Basis::New,
            true,
            step(Some(true), Some(2)),
            &[
                (StepFailed, 1),
                (StepRetried, 2),
                (StepFailed, 2),
                (StepRetried, 3),
                (StepFailed, 3),
            ],
        ),
        (
            "two rises after a failure that was told",
            told(true, 0),
            Basis::Changed,
            true,
            step(Some(false), Some(2)),
            &[(StepRetried, 2), (StepFailed, 2), (StepRetried, 3)],
        ),
        (
            "failed again",
            told(false, 1),
            Basis::Changed,
            true,
            step(Some(true), None),
            &[(StepFailed, 2)],
        ),
        ("completed", told(true, 1), Basis::Changed, true, step(Some(false), None), &[]),
        (
            "of before anybody listened",
            None,
            Basis::Changed,
            false,
            step(Some(false), Some(7)),
            &[(StepRetried, 8)],
        ),
        ("failed before anybody listened", None, OLD, false, step(Some(true), Some(7)), &[]),
        ("failed just now", None, LATE, false, step(Some(true), Some(7)), &[(StepFailed, 8)]),
        ("replaced alike", told(true, 1), LATE, true, step(Some(true), Some(1)), &[]),
        (
            "replaced, retried and failed",
            told(true, 1),
            LATE,
            true,
            step(Some(true), Some(2)),
            &[(StepRetried, 3), (StepFailed, 3)],
        ),
        ("set back", told(true, 5), LATE, true, step(Some(false), Some(0)), &[]),
        ("negative", None, Basis::New, true, step(Some(false), Some(-3)), &[]),
    ];
    for (name, told, basis, seen, news, expected) in cases {
        assert_eq!(news.events(*told, *basis, *seen).0, *expected, "{name}");
    }
    let (events, after) = step(Some(true), Some(i32::MAX)).events(None, Basis::New, true);
    assert_eq!(events.len(), 2 * RISES_MOST as usize + 1, "the last ones of many");
    assert_eq!(after, StepTold { failed: true, retry_count: i32::MAX });
    assert_eq!(
        step(None, Some(1)).events(told(true, 0), Basis::Changed, true).1,
        StepTold { failed: false, retry_count: 1 }
    );
}

fn created() -> Execution {
    use crate::domain::execution::decide;
    use crate::domain::{Decision, ExecutionOp, Now};
    let create = ExecutionOp::Create(Box::default());
    match decide("e", None, &create, Now { micros: 1 }) {
        Ok(Decision::Put(record)) => record,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_change_says_what_it_set_and_nothing_else() {
    let mut running = created();
    let mut silent = running.clone();
    silent.status = Some(ExecutionStatus::Failed);
    silent.error = Some(RunError {
        message: "x".repeat(5000),
        code: crate::domain::execution::HEARTBEAT_TIMEOUT.to_owned(),
        stack_trace: "secret".to_owned(),
        ..RunError::default()
    });
    silent.completed_at = Some(7);
    let said = Standing::of_execution(Some(&running), &silent);
    assert_eq!((said.status, said.completed_at), (Some(Status::Silent), Some(7)));
    let error = said.error.expect("the error");
    assert_eq!((error.message.len(), error.stack_trace.as_str()), (ERROR_BYTES, ""));
    let mut heard = silent.clone();
    heard.digests.finish = Some("d".to_owned());
    let said = Standing::of_execution(Some(&silent), &heard);
    assert!(said.heard && said.status.is_none());
    let mut renamed = heard.clone();
    renamed.metadata.insert("a", 1);
    assert!(Standing::of_execution(Some(&heard), &renamed).is_empty());
    running.cancel_requested_at = Some(1);
    let said = Standing::of_execution(None, &running);
    assert!(said.cancel_requested && said.status == Some(Status::Running));
}
