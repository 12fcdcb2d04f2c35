//! Tests of rollups.

use super::*;

#[test]
fn quantiles_are_within_a_hundredth() {
    let mut durations = Durations::default();
    let values: Vec<i64> = (1..=10_000).map(|n| n * n / 7 + 3).collect();
    for value in &values {
        durations.add(Durations::bucket(*value), 1);
    }
    for quantile in [0.01, 0.5, 0.9, 0.99, 1.0] {
        let exact = values[(quantile * values.len() as f64).ceil() as usize - 1];
        let read = durations.quantile(quantile).unwrap();
        assert!((read - exact).abs() as f64 <= exact as f64 / 100.0, "{quantile}: {read} {exact}");
    }
    assert_eq!(Durations::default().quantile(0.5), None);
}

#[test]
fn what_is_taken_away_leaves_nothing() {
    let counted = Counted {
        counts_as: CountsAs {
            group: Group { app_name: "a".into(), user_id: Some("u".into()), ..Group::default() },
            quarter: Some(-3),
            outcome: Outcome::Failed,
            duration_ms: Some(1234),
        },
        failures: vec![Failure {
            step_id: Some(4),
            step_name: Some("load".into()),
            failed_at: None,
            fingerprint: "f".into(),
            message: "m".into(),
        }],
    };
    let mut deltas = Deltas::default();
    deltas.replace(None, Some(&counted));
    assert_eq!(deltas.rollups.len(), 3);
    assert_eq!(deltas.failures.len(), 2);
    let (key, hour) = deltas.rollups.iter_mut().find(|(key, _)| key.level == Level::Hour).unwrap();
    assert_eq!(key.at, Some(-1));
    assert_eq!(hour.part(1).of(Outcome::Failed).executions, 1);
    deltas.replace(Some(&counted), None);
    deltas.settle();
    assert_eq!(deltas, Deltas::default());
}

#[test]
fn stretches_cover_a_span_with_days_inside() {
    let day = QUARTERS_OF_DAY;
    let hours = |from, until| Stretch { days: false, from, until };
    let days = |from, until| Stretch { days: true, from, until };
    assert_eq!(Span { from: 0, until: day }.stretches(), vec![days(0, 1)]);
    assert_eq!(Span { from: 2, until: 5 }.stretches(), vec![hours(0, 2)]);
    assert_eq!(
        Span { from: -2, until: 2 * day + 1 }.stretches(),
        vec![hours(-1, 0), days(0, 2), hours(48, 49)]
    );
    assert_eq!(Span { from: 5, until: 5 }.stretches(), vec![]);
    assert_eq!(Span::ALL.stretches().len(), 1);
    assert!(Span { from: 2, until: 5 }.has(0, 2));
    assert!(!Span { from: 2, until: 5 }.has(0, 1));
}
