//! Charts of block characters: bars, sparklines and shades. They take colour only where the output has it, and never
//! say anything by colour alone.

/// Eighths of a character, growing to the right.
const BARS: [char; 9] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
/// Eighths of a character, growing upwards.
const SPARKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Shades, growing darker; the first stands for nothing at all.
const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];
/// The same in colours of a terminal of 256.
const HEAT: [u8; 5] = [238, 23, 30, 37, 50];

/// A bar of `value` where `most` fills `width` characters. What is not nothing shows.
pub fn bar(value: f64, most: f64, width: usize) -> String {
    if value <= 0.0 || most <= 0.0 || width == 0 {
        return String::new();
    }
    let eighths = (value / most).min(1.0) * width as f64 * 8.0;
    let eighths = (eighths.round() as usize).max(1);
    let mut bar = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        bar.push(BARS[eighths % 8]);
    }
    bar
}

/// One character for each value, as high as it is beside the greatest; `None` is a gap.
pub fn spark(values: &[Option<f64>]) -> String {
    let most = values.iter().flatten().copied().fold(0.0, f64::max);
    let one = |value: &Option<f64>| match value {
        None => ' ',
        Some(value) if *value <= 0.0 => '·',
        Some(value) => {
            let step = (value / most * (SPARKS.len() - 1) as f64).round();
            SPARKS[(step as usize).min(SPARKS.len() - 1)]
        }
    };
    values.iter().map(one).collect()
}

/// As many values as fit: neighbours become one, by what `join` makes of them.
pub fn squeeze(
    values: &[Option<f64>],
    width: usize,
    join: impl Fn(f64, f64) -> f64,
) -> Vec<Option<f64>> {
    let together = values.len().div_ceil(width.max(1)).max(1);
    let one = |some: &[Option<f64>]| some.iter().flatten().copied().reduce(&join);
    values.chunks(together).map(one).collect()
}

/// How dark a value is where `most` is the darkest: 0 is nothing at all, and only nothing.
fn shade(value: i64, most: i64) -> usize {
    if value <= 0 || most <= 0 {
        return 0;
    }
    let steps = SHADES.len() - 1;
    // By the root: a few great values do not make all others look like nothing.
    let step = ((value as f64 / most as f64).sqrt() * steps as f64).ceil() as usize;
    step.clamp(1, steps)
}

/// One cell of a heat map.
pub fn heat(value: i64, most: i64, width: usize, colour: bool) -> String {
    let shade = shade(value, most);
    let cell = SHADES[shade].to_string().repeat(width);
    if colour { format!("\u{1b}[38;5;{}m{cell}\u{1b}[0m", HEAT[shade]) } else { cell }
}

/// Where what is emphasised stands out, if the output has colours.
pub fn bold(text: &str, colour: bool) -> String {
    if colour { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// `1,234,567`.
pub fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if number < 0 { format!("-{grouped}") } else { grouped }
}

/// A share as percent.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A change as percent, with its sign; empty when there is none to tell.
pub fn change(change: Option<f64>) -> String {
    match change {
        None => String::new(),
        Some(change) if change.abs() < 0.005 => "±0 %".to_owned(),
        Some(change) if change < 0.0 => format!("−{:.0} %", -change * 100.0),
        Some(change) => format!("+{:.0} %", change * 100.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_fill_their_width_and_show_what_is_not_nothing() {
        assert_eq!(bar(10.0, 10.0, 4), "████");
        assert_eq!(bar(5.0, 10.0, 3), "█▌");
        assert_eq!(bar(0.001, 10.0, 4), "▏");
        for nothing in [bar(0.0, 10.0, 4), bar(1.0, 0.0, 4), bar(1.0, 1.0, 0)] {
            assert_eq!(nothing, "");
        }
        assert_eq!(bar(20.0, 10.0, 2), "██");
    }

    #[test]
    fn sparks_go_from_nothing_to_the_greatest() {
        assert_eq!(spark(&[Some(0.0), Some(7.0), None, Some(14.0)]), "·▅ █");
        assert_eq!(spark(&[Some(0.0), Some(0.001), Some(1.0)]), "·▁█");
        let values: Vec<Option<f64>> = (0..10).map(|n| Some(f64::from(n))).collect();
        assert_eq!(squeeze(&values, 5, f64::max), [1.0, 3.0, 5.0, 7.0, 9.0].map(Some));
        assert_eq!(squeeze(&values, 50, f64::max), values);
        assert_eq!(squeeze(&[None, None, Some(1.0)], 2, f64::max), [None, Some(1.0)]);
    }

    #[test]
    fn only_nothing_looks_like_nothing() {
        assert_eq!(heat(0, 100, 2, false), "··");
        assert_eq!(heat(1, 1_000_000, 1, false), "░");
        assert_eq!(heat(100, 100, 1, false), "█");
        assert!(heat(1, 1, 1, true).contains('\u{1b}'));
    }

    #[test]
    fn numbers_are_written_for_people() {
        for (number, told) in [(0, "0"), (999, "999"), (1000, "1,000"), (-1_234_567, "-1,234,567")]
        {
            assert_eq!(grouped(number), told);
        }
        assert_eq!(percent(0.98765), "98.8 %");
        assert_eq!(change(Some(0.125)), "+12 %");
        assert_eq!(change(Some(-0.5)), "−50 %");
        assert_eq!(change(Some(0.001)), "±0 %");
        assert_eq!(change(None), "");
    }
}
