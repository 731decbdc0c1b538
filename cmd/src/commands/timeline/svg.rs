//! A timeline as a picture: one SVG file without anything from elsewhere, for light and dark.

use std::fmt::Write as _;

use super::rows::{Axis, Row, duration};

const WIDTH: f64 = 1000.0;
const LABELS: f64 = 260.0;
const ROW: f64 = 22.0;
const TOP: f64 = 44.0;

/// Draws the rows.
pub(super) fn draw(title: &str, rows: &[Row], axis: &Axis) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a place on a picture")]
    let height = TOP + ROW * rows.len() as f64 + 20.0;
    let start = rows.first().map_or(0, |row| row.from_us);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<style>\n\
         svg {{ background: #fff; color: #222 }} text {{ fill: currentColor }}\n\
         .a {{ fill: #4878a8 }} .b {{ fill: #5a9a5a }} .c {{ fill: #c08030 }} .m {{ fill: #a04060 }}\n\
         @media (prefers-color-scheme: dark) {{ svg {{ background: #1c1c1c; color: #ddd }} }}\n\
         </style>\n<text x=\"10\" y=\"24\" font-size=\"16\">{}</text>\n",
        escaped(title)
    );
    let scale = WIDTH - LABELS - 110.0;
    let mut y = TOP;
    for row in rows {
        let from = LABELS + scale * axis.place(row.from_us);
        let width = (scale * (axis.place(row.to_us) - axis.place(row.from_us))).max(1.5);
        let label = super::label(row);
        let told = super::told(row, start);
        let _ = writeln!(
            svg,
            "<text x=\"10\" y=\"{:.1}\">{}</text>",
            y + 14.0,
            escaped(&label)
        );
        let _ = writeln!(
            svg,
            "<rect class=\"{}\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"14\" \
             rx=\"2\"><title>{}</title></rect>",
            class(row),
            y + 3.0,
            escaped(&format!("{label}: {told}"))
        );
        if !row.moment {
            let _ = writeln!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                from + width + 4.0,
                y + 14.0,
                duration(row.to_us - row.from_us)
            );
        }
        y += ROW;
    }
    svg.push_str("</svg>\n");
    svg
}

/// The colour of a row: making, running, taking away, moments.
fn class(row: &Row) -> &'static str {
    match row.step.as_str() {
        _ if row.moment => "m",
        "process" | "pea" => "b",
        step if step.starts_with("teardown") => "c",
        _ => "a",
    }
}

/// A text in XML. Names of containers have few characters, details any.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_cannot_leave_its_place() {
        let row = Row {
            step: "health".into(),
            process: None,
            from_us: 1,
            to_us: 1,
            open: false,
            moment: true,
            detail: "<script>\u{1b}&".into(),
        };
        let rows = [row];
        let svg = draw("a", &rows, &Axis::new(&rows, false));
        assert!(svg.contains("&lt;script&gt;?&amp;") && !svg.contains("<script"));
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
