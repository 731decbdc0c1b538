//! Tables for people: columns as wide as they need, two spaces between.

use crate::colour::{self, Tone};

/// Formats rows under a heading.
pub(crate) fn format(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|title| title.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let heading: Vec<String> = heading.iter().map(|title| (*title).to_owned()).collect();
    for row in std::iter::once(&heading).chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        let line = cells.join("  ");
        let is_heading = text.is_empty();
        text.push_str(&match is_heading {
            true => colour::paint(line.trim_end(), Tone::Faint),
            false => line.trim_end().to_owned(),
        });
        text.push('\n');
    }
    text
}

/// An age in its largest unit.
pub(crate) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A number of bytes in its largest unit of 1024, as flags take them.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["", "K", "M", "G", "T", "P", "E"];
    let unit = (bytes.max(1).ilog2() / 10) as usize;
    if unit == 0 {
        return bytes.to_string();
    }
    // In tenths, rounded up: what is used is not less than shown.
    let tenths = (u128::from(bytes) * 10).div_ceil(1 << (10 * unit));
    format!("{}.{}{}", tenths / 10, tenths % 10, units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let shown = [0, 1023, 1024, 1536, (1 << 20) + 1, u64::MAX].map(size);
        assert_eq!(shown, ["0", "1023", "1.0K", "1.5K", "1.1M", "16.0E"]);
    }

    #[test]
    fn columns_are_aligned() {
        let rows = vec![
            vec!["a".into(), "b".into()],
            vec!["long".into(), "c".into()],
        ];
        assert_eq!(format(&["X", "Y"], &rows), "X     Y\na     b\nlong  c\n");
        assert_eq!(age(3_599_000), "59m");
    }
}
