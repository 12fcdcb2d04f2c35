//! Tables that fit: one line a row, long texts cut with `…`, the least important columns left out first.

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Row, Table, Width,
};

use super::output::Output;
use super::text;

/// Never a character of a cell, so that texts are cut anywhere and not only between words.
const NEVER: char = '\u{0}';

/// How a column behaves when there is little room.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub title: &'static str,
    /// Columns it keeps at least; 0: it is never cut.
    pub at_least: u16,
    pub right: bool,
    /// Left out in this order, greatest first, when there is no room; 0: never.
    pub spare: u8,
}

impl Column {
    /// A column that is shown in full.
    pub const fn whole(title: &'static str) -> Self {
        Column { title, at_least: 0, right: false, spare: 0 }
    }

    /// A column whose texts may be cut down to `at_least`.
    pub const fn cut(title: &'static str, at_least: u16) -> Self {
        Column { title, at_least, right: false, spare: 0 }
    }

    pub const fn right(mut self) -> Self {
        self.right = true;
        self
    }

    pub const fn spare(mut self, order: u8) -> Self {
        self.spare = order;
        self
    }
}

/// One cell: a text, and perhaps a colour that says nothing the text does not say.
#[derive(Debug, Clone)]
pub struct Content {
    text: String,
    colour: Option<Color>,
}

impl From<String> for Content {
    fn from(text: String) -> Self {
        Content { text, colour: None }
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Content { text: text.to_owned(), colour: None }
    }
}

/// A status in its colour.
pub fn status(word: &str) -> Content {
    Content { text: word.to_owned(), colour: status_colour(word) }
}

/// What a colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    Good,
    Bad,
}

/// A text in a colour that stresses what it says.
pub fn coloured(text: &str, colour: Option<Colour>) -> Content {
    let colour = colour.map(|colour| match colour {
        Colour::Good => Color::Green,
        Colour::Bad => Color::Red,
    });
    Content { text: text.to_owned(), colour }
}

fn status_colour(word: &str) -> Option<Color> {
    match word {
        "running" => Some(Color::Cyan),
        "completed" => Some(Color::Green),
        "failed" => Some(Color::Red),
        "cancelled" | "skipped" => Some(Color::Yellow),
        _ => None,
    }
}

/// Lines of a table; empty columns are left out. The width is that of the terminal, if it is one.
pub fn render(output: &Output, columns: &[Column], rows: Vec<Vec<Content>>) -> Vec<String> {
    let rows: Vec<Vec<Content>> = rows
        .into_iter()
        .map(|row| {
            row.into_iter()
                .map(|content| Content { text: text::one_line(&content.text), ..content })
                .collect()
        })
        .collect();
    let mut shown: Vec<usize> = (0..columns.len())
        .filter(|index| {
            columns[*index].spare == 0
                || rows.iter().any(|row| {
                    row.get(*index)
                        .is_some_and(|content| !matches!(content.text.as_str(), "" | text::NOTHING))
                })
        })
        .collect();
    loop {
        let (table, least) = build(output, columns, &shown, &rows);
        let spare = shown.iter().copied().filter(|index| columns[*index].spare > 0);
        let most_spare = spare.max_by_key(|index| columns[*index].spare);
        match (output.width, most_spare) {
            (Some(width), Some(index)) if least > usize::from(width) => {
                shown.retain(|kept| *kept != index);
            }
            _ => return table.lines().map(|line| line.trim_end().to_owned()).collect(),
        }
    }
}

/// The table of some columns, and how wide it is at least.
fn build(
    output: &Output,
    columns: &[Column],
    shown: &[usize],
    rows: &[Vec<Content>],
) -> (Table, usize) {
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_delimiter(NEVER)
        .set_truncation_indicator("…");
    table.force_no_tty();
    match output.width {
        Some(width) => {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        None => {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
    }
    if output.colour {
        table.enforce_styling();
    }
    let mut header = Row::from(
        shown
            .iter()
            .map(|index| Cell::new(columns[*index].title).add_attribute(Attribute::Bold))
            .collect::<Vec<_>>(),
    );
    header.max_height(1);
    table.set_header(header);
    for row in rows {
        let cells: Vec<Cell> = shown
            .iter()
            .filter_map(|index| row.get(*index))
            .map(|content| {
                let cell = Cell::new(&content.text);
                match content.colour {
                    Some(colour) => cell.fg(colour),
                    None => cell,
                }
            })
            .collect();
        let mut row = Row::from(cells);
        row.max_height(1);
        table.add_row(row);
    }
    let contents = table.column_max_content_widths();
    let last = shown.len().saturating_sub(1);
    let mut least = 0;
    for (position, index) in shown.iter().enumerate() {
        let column = &columns[*index];
        let content = contents.get(position).copied().unwrap_or(0);
        let gap = if position == last { 0 } else { 2 };
        let narrowest = if column.at_least == 0 { content } else { content.min(column.at_least) };
        least += usize::from(narrowest) + usize::from(gap);
        let Some(settings) = table.column_mut(position) else { continue };
        settings.set_padding((0, gap));
        if column.right {
            settings.set_cell_alignment(CellAlignment::Right);
        }
        if output.width.is_some() {
            settings.set_constraint(if column.at_least == 0 {
                ColumnConstraint::ContentWidth
            } else {
                // The boundary counts the gap.
                ColumnConstraint::LowerBoundary(Width::Fixed(narrowest + gap))
            });
        }
    }
    (table, least)
}

/// Lines of `name  value`, for one record.
pub fn record(output: &Output, fields: Vec<(&'static str, Content)>) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.force_no_tty();
    match output.width {
        Some(width) => {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        None => {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
    }
    if output.colour {
        table.enforce_styling();
    }
    for (name, content) in fields {
        let value = Cell::new(text::lines(&content.text));
        let value = match content.colour {
            Some(colour) => value.fg(colour),
            None => value,
        };
        table.add_row(vec![Cell::new(name).add_attribute(Attribute::Bold), value]);
    }
    for (index, padding) in [(0, (0, 2)), (1, (0, 0))] {
        if let Some(column) = table.column_mut(index) {
            column.set_padding(padding);
            if index == 0 && output.width.is_some() {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::Format;

    const COLUMNS: [Column; 4] = [
        Column::whole("ID"),
        Column::cut("NAME", 8),
        Column::whole("STATUS"),
        Column::cut("ERROR", 6).spare(1),
    ];

    fn output(width: Option<u16>) -> Output {
        Output { format: Format::Table, width, colour: false }
    }

    fn rows() -> Vec<Vec<Content>> {
        vec![
            vec![
                "1".into(),
                "a name of forty characters, or a little more".into(),
                status("failed"),
                "it\nbroke badly, and the reason is long".into(),
            ],
            vec!["22".into(), "短い名前".into(), status("completed"), "".into()],
        ]
    }

    #[test]
    fn without_a_terminal_nothing_is_cut() {
        let lines = render(&output(None), &COLUMNS, rows());
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("a name of forty characters, or a little more"));
        assert!(lines[1].contains("it broke badly, and the reason is long"));
    }

    #[test]
    fn a_table_fits_the_terminal_one_line_a_row() {
        for width in 30..100 {
            let lines = render(&output(Some(width)), &COLUMNS, rows());
            assert_eq!(lines.len(), 3, "{width}: {lines:#?}");
            for line in &lines {
                // Two columns for each wide character.
                let wide = line.chars().filter(|c| *c as u32 > 0x2fff).count();
                assert!(line.chars().count() + wide <= usize::from(width), "{width}: {line:?}");
            }
            assert!(lines[2].contains("completed"), "{lines:#?}");
        }
    }

    #[test]
    fn a_cut_text_shows_that_it_is_cut() {
        let lines = render(&output(Some(60)), &COLUMNS, rows());
        assert!(lines[1].contains('…'), "{lines:#?}");
        assert!(!lines[2].contains('…'), "{lines:#?}");
    }

    #[test]
    fn spare_columns_go_first_when_there_is_no_room() {
        let lines = render(&output(Some(24)), &COLUMNS, rows());
        assert!(!lines[0].contains("ERROR"), "{lines:#?}");
        assert!(lines[0].contains("STATUS"), "{lines:#?}");
    }

    #[test]
    fn an_empty_spare_column_is_left_out() {
        let rows = vec![vec!["1".into(), "n".into(), status("running"), "".into()]];
        let lines = render(&output(None), &COLUMNS, rows);
        assert_eq!(lines[0], "ID  NAME  STATUS");
    }

    #[test]
    fn colour_only_when_asked_for() {
        let plain = render(&output(Some(80)), &COLUMNS, rows());
        assert!(plain.iter().all(|line| !line.contains('\u{1b}')));
        let coloured = Output { colour: true, ..output(Some(80)) };
        let lines = render(&coloured, &COLUMNS, rows());
        assert!(lines[1].contains('\u{1b}'));
    }
}
