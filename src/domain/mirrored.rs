//! Writes that bring a record from elsewhere as it is there now, again and again. Each has a place in the log of its source,
//! and only a greater one replaces what is stored; whoever else has changed the record is not overwritten.

/// What becomes of a mirrored write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is not newer than what is stored.
    Late,
    Replaces,
    /// Somebody else has stored or changed the record.
    Conflict,
}

/// What a stored record says of the mirrored writes before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mirrored {
    /// The place that the latest of them had. `None`: there was none.
    pub position: Option<i64>,
    /// Whether nobody has changed the record since.
    pub untouched: bool,
}

/// Decides about a write of this place. `same`: whether what is stored is what the write brings, whoever stored it.
pub fn judge<E>(
    stored: Mirrored,
    position: i64,
    same: impl FnOnce() -> Result<bool, E>,
) -> Result<Verdict, E> {
    Ok(match stored.position {
        Some(before) if position <= before => Verdict::Late,
        Some(_) if stored.untouched => Verdict::Replaces,
        _ if same()? => Verdict::Replaces,
        _ => Verdict::Conflict,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_decides_first_then_who_changed_it() {
        let stored = |position, untouched| Mirrored { position, untouched };
        for (before, position, same, verdict) in [
            (stored(Some(5), true), 5, false, Verdict::Late),
            (stored(Some(5), false), 4, false, Verdict::Late),
            (stored(Some(5), true), 6, false, Verdict::Replaces),
            (stored(Some(5), false), 6, false, Verdict::Conflict),
            (stored(Some(5), false), 6, true, Verdict::Replaces),
            (stored(None, true), 6, false, Verdict::Conflict),
            (stored(None, false), 6, true, Verdict::Replaces),
        ] {
            assert_eq!(judge(before, position, || Ok::<_, ()>(same)), Ok(verdict), "{before:?}");
        }
        // What is stored is not even looked at where the place says enough.
        assert_eq!(judge(stored(Some(5), true), 6, || Err(())), Ok(Verdict::Replaces));
        assert_eq!(judge(stored(Some(5), false), 6, || Err(())), Err(()));
    }
}
