//! What is known of a mirror, and when it may end.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Millis, Refusal};

/// After so long without a word from whoever runs a mirror nobody knows how far behind it is.
pub const SILENT_MS: Millis = 10_000;

/// Where a mirror stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Phase {
    /// What was there before is being copied.
    #[default]
    Copying,
    /// Changes are brought as they come.
    Following,
    Finished,
}

/// How many records were brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Copied {
    pub executions: i64,
    pub steps: i64,
    pub artifacts: i64,
    pub points: i64,
    pub configurations: i64,
    pub deletions: i64,
}

/// How far whoever runs a mirror is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    pub phase: Phase,
    /// In the words of the source; empty: from the beginning.
    pub resume_token: String,
    /// Up to where in the log of the source everything is here.
    pub position: i64,
    /// The place of the last change that was brought.
    pub changed_position: i64,
    /// `None`: not known.
    pub lag_ms: Option<i64>,
    pub copied: Copied,
    pub refused: BTreeMap<String, i64>,
    pub conflicts: i64,
}

/// What a comparison with the source has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    pub clean: bool,
    /// Where the log of the source was when it began.
    pub position: i64,
    pub differences: i64,
    pub at: Millis,
}

/// A mirror.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    pub name: String,
    pub source: String,
    /// Grows with each beginning.
    pub session: i64,
    pub progress: Progress,
    pub verification: Option<Verification>,
    pub begun_at: Millis,
    pub advanced_at: Millis,
    pub finished_at: Option<Millis>,
}

impl Mirror {
    /// One more beginning.
    pub fn begun(
        stored: Option<&Mirror>,
        name: &str,
        source: &str,
        now: Millis,
    ) -> Result<Mirror, Refusal> {
        let Some(stored) = stored else {
            return Ok(Mirror {
                name: name.to_owned(),
                source: source.to_owned(),
                session: 1,
                progress: Progress::default(),
                verification: None,
                begun_at: now,
                advanced_at: now,
                finished_at: None,
            });
        };
        stored.open()?;
        if stored.source != source {
            let (name, stored) = (name.to_owned(), stored.source.clone());
            return Err(Refusal::MirrorSourceDiffers { name, stored });
        }
        let mut mirror = stored.clone();
        mirror.session += 1;
        mirror.progress.lag_ms = None;
        Ok(mirror)
    }

    fn open(&self) -> Result<(), Refusal> {
        match self.finished_at {
            None => Ok(()),
            Some(_) => Err(Refusal::MirrorFinished { name: self.name.clone() }),
        }
    }

    /// With what whoever runs it says.
    pub fn advanced(
        &self,
        session: i64,
        progress: Progress,
        now: Millis,
    ) -> Result<Mirror, Refusal> {
        self.open()?;
        if session != self.session {
            return Err(Refusal::MirrorTakenOver { name: self.name.clone() });
        }
        Ok(Mirror { progress, advanced_at: now, ..self.clone() })
    }

    /// With what a comparison has shown.
    pub fn verified(&self, verification: Verification) -> Result<Mirror, Refusal> {
        self.open()?;
        Ok(Mirror { verification: Some(verification), ..self.clone() })
    }

    /// How far behind it is, if that is known.
    pub fn lag_ms(&self, now: Millis) -> Option<i64> {
        let heard = now.saturating_sub(self.advanced_at) <= SILENT_MS;
        self.progress.lag_ms.filter(|_| heard && self.progress.phase == Phase::Following)
    }

    /// Ended, unless something speaks against that. The same again changes nothing.
    pub fn finished(&self, force: bool, now: Millis) -> Result<Mirror, Refusal> {
        if self.finished_at.is_some() {
            return Ok(self.clone());
        }
        let why = match (self.lag_ms(now), self.verification) {
            _ if force => None,
            (None, _) if self.progress.phase == Phase::Copying => {
                Some("what was there before is not copied yet".to_owned())
            }
            (None, _) => Some("its lag is not known: nobody runs it now".to_owned()),
            (Some(lag), _) if lag != 0 => Some(format!("its lag is {lag} ms and not 0")),
            (_, None) => Some("it was not compared with its source yet".to_owned()),
            (_, Some(last)) if !last.clean => {
                Some(format!("it differed from its source in {} records", last.differences))
            }
            (_, Some(last)) if last.position < self.progress.changed_position => {
                Some("something has changed since the comparison with its source began".to_owned())
            }
            _ => None,
        };
        if let Some(why) = why {
            return Err(Refusal::MirrorNotReady { name: self.name.clone(), why });
        }
        let progress = Progress { phase: Phase::Finished, ..self.progress.clone() };
        Ok(Mirror { progress, finished_at: Some(now), ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn following(lag_ms: Option<i64>, changed_position: i64) -> Progress {
        Progress {
            phase: Phase::Following,
            position: changed_position,
            changed_position,
            lag_ms,
            ..Progress::default()
        }
    }

    fn verified(clean: bool, position: i64) -> Verification {
        Verification { clean, position, differences: i64::from(!clean), at: 0 }
    }

    #[test]
    fn one_runs_it_and_it_goes_on_where_it_was() {
        let first = Mirror::begun(None, "m", "a", 1).unwrap();
        let progress = Progress { resume_token: "t".to_owned(), ..following(Some(0), 7) };
        let advanced = first.advanced(first.session, progress, 2).unwrap();
        let second = Mirror::begun(Some(&advanced), "m", "a", 3).unwrap();
        assert_eq!((second.progress.resume_token.as_str(), second.session), ("t", 2));
        assert_eq!(second.lag_ms(3), None, "nobody has said anything yet");
        assert!(matches!(
            second.advanced(first.session, following(None, 8), 4),
            Err(Refusal::MirrorTakenOver { .. })
        ));
        assert!(matches!(
            Mirror::begun(Some(&advanced), "m", "b", 3),
            Err(Refusal::MirrorSourceDiffers { .. })
        ));
    }

    #[test]
    fn it_ends_only_when_nothing_is_missing_and_that_was_looked_at() {
        let new = Mirror::begun(None, "m", "a", 0).unwrap();
        let ends = |progress: Progress, verification: Option<Verification>, now| {
            let mut mirror = new.advanced(new.session, progress, 0).unwrap();
            if let Some(verification) = verification {
                mirror = mirror.verified(verification).unwrap();
            }
            assert!(mirror.finished(true, now).is_ok(), "by force it always does");
            mirror.finished(false, now).is_ok()
        };
        let clean = Some(verified(true, 7));
        assert!(ends(following(Some(0), 7), clean, 5));
        assert!(!ends(following(Some(3), 7), clean, 5), "lag");
        assert!(!ends(following(None, 7), clean, 5), "unknown lag");
        assert!(!ends(following(Some(0), 7), clean, SILENT_MS + 1), "nobody runs it");
        assert!(!ends(following(Some(0), 8), clean, 5), "a later change");
        assert!(!ends(following(Some(0), 7), None, 5), "never compared");
        assert!(!ends(following(Some(0), 7), Some(verified(false, 9)), 5), "different");
        let copying = Progress { phase: Phase::Copying, ..following(Some(0), 7) };
        assert!(!ends(copying, clean, 5), "still copying");
    }

    #[test]
    fn what_has_ended_stays_so() {
        let mirror = Mirror::begun(None, "m", "a", 0).unwrap().finished(true, 5).unwrap();
        assert_eq!(mirror.finished(false, 9).unwrap(), mirror);
        let ended =
            |result: Result<Mirror, Refusal>| matches!(result, Err(Refusal::MirrorFinished { .. }));
        assert!(ended(Mirror::begun(Some(&mirror), "m", "a", 9)));
        assert!(ended(mirror.advanced(1, Progress::default(), 9)));
        assert!(ended(mirror.verified(verified(true, 1))));
    }
}
