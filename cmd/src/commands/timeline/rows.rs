//! From the lines of a timeline to the rows of a waterfall, and from times to places.

use garden::timeline::{Line, Part, Timeline};

/// One row: a step, or a moment where nothing lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) step: String,
    pub(super) process: Option<String>,
    /// In microseconds since the epoch.
    pub(super) from_us: u64,
    /// Its end; that of a step that goes on is the end of what is shown.
    pub(super) to_us: u64,
    /// Whether it goes on.
    pub(super) open: bool,
    pub(super) moment: bool,
    pub(super) detail: String,
}

/// All rows in the order of their beginnings. `now_us` is where what goes on is cut.
pub(super) fn rows(timeline: &Timeline, now_us: u64) -> Vec<Row> {
    let over = timeline.is_over();
    let last = timeline.lines.iter().map(end).max().unwrap_or(now_us);
    let cut = if over { last } else { now_us.max(last) };
    let mut rows: Vec<Row> = Vec::new();
    for line in &timeline.lines {
        let mut row = Row {
            step: line.step.clone(),
            process: line.process.clone(),
            from_us: line.at_us,
            to_us: end(line),
            open: false,
            moment: line.part == Part::Moment,
            detail: line.detail.clone(),
        };
        match line.part {
            Part::Whole | Part::Moment => {}
            Part::Begin => {
                row.to_us = cut;
                row.open = true;
            }
            Part::End => {
                let begun = rows.iter_mut().rev().find(|begun| {
                    begun.open && begun.step == line.step && begun.process == line.process
                });
                if let Some(begun) = begun {
                    begun.to_us = line.at_us.max(begun.from_us);
                    begun.open = false;
                    begun.detail.clone_from(&line.detail);
                    continue;
                }
                // Its beginning is no longer remembered.
                row.moment = true;
            }
        }
        rows.push(row);
    }
    for row in rows.iter_mut().filter(|row| row.open && over) {
        // With its container.
        row.open = false;
    }
    // Of two that begin together the longer one holds the other.
    rows.sort_by_key(|row| (row.from_us, std::cmp::Reverse(row.to_us)));
    rows
}

fn end(line: &Line) -> u64 {
    line.at_us.saturating_add(line.took_us.unwrap_or(0))
}

/// Where times are on an axis from 0 to 1.
///
/// A container lives for hours and is made in milliseconds. So the time between two things that
/// happen gets a place that grows with its logarithm, unless the axis is linear.
#[derive(Debug)]
pub(super) struct Axis {
    /// Times at which something begins or ends, with their places.
    marks: Vec<(u64, f64)>,
}

impl Axis {
    /// An axis for these rows.
    pub(super) fn new(rows: &[Row], linear: bool) -> Self {
        let mut times: Vec<u64> = rows.iter().flat_map(|r| [r.from_us, r.to_us]).collect();
        times.sort_unstable();
        times.dedup();
        let mut place = 0.0;
        let mut before = times.first().copied().unwrap_or(0);
        let mut marks: Vec<(u64, f64)> = Vec::with_capacity(times.len());
        for time in times {
            #[expect(clippy::cast_precision_loss, reason = "a place on a picture")]
            let gap_ms = (time - before) as f64 / 1000.0;
            place += if linear { gap_ms } else { gap_ms.ln_1p() };
            before = time;
            marks.push((time, place));
        }
        if place > 0.0 {
            for (_, at) in &mut marks {
                *at /= place;
            }
        }
        Self { marks }
    }

    /// The place of a time that one of the rows has.
    pub(super) fn place(&self, time: u64) -> f64 {
        match self.marks.binary_search_by_key(&time, |(time, _)| *time) {
            Ok(index) => self.marks.get(index).map_or(0.0, |(_, place)| *place),
            Err(_) => 0.0,
        }
    }
}

/// A duration in the unit that fits it.
pub(super) fn duration(us: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let us = us as f64;
    if us < 1000.0 {
        format!("{us:.0} µs")
    } else if us < 1e6 {
        format!("{:.1} ms", us / 1e3)
    } else if us < 120e6 {
        format!("{:.2} s", us / 1e6)
    } else {
        format!("{:.1} min", us / 60e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        serde_json::from_str(text).unwrap()
    }

    fn life() -> Timeline {
        Timeline {
            lines: vec![
                line(r#"{"step":"create","part":"begin","at_us":1000}"#),
                line(r#"{"step":"rootfs","part":"whole","at_us":1500,"took_us":2500}"#),
                line(r#"{"step":"create","part":"end","at_us":6000}"#),
                line(r#"{"step":"pea","part":"begin","at_us":9000,"process":"p"}"#),
            ],
        }
    }

    #[test]
    fn beginnings_and_ends_become_rows() {
        let mut life = life();
        let found = rows(&life, 20_000);
        let shown: Vec<_> = found
            .iter()
            .map(|row| (row.step.as_str(), row.from_us, row.to_us, row.open))
            .collect();
        let expected = [
            ("create", 1000, 6000, false),
            ("rootfs", 1500, 4000, false),
            ("pea", 9000, 20_000, true),
        ];
        assert_eq!(shown, expected);
        let end = r#"{"step":"destroyed","part":"moment","at_us":12000}"#;
        life.lines.push(line(end));
        let found = rows(&life, 99_000);
        assert_eq!(found[2].to_us, 12_000);
        assert!(!found[2].open && found[3].moment);
    }

    #[test]
    fn places_are_in_order_and_fill_the_axis() {
        let found = rows(&life(), 3_600_000_000);
        for linear in [true, false] {
            let axis = Axis::new(&found, linear);
            let places: Vec<_> = [1000, 1500, 4000, 6000, 9000, 3_600_000_000]
                .map(|time| axis.place(time))
                .to_vec();
            assert!(places.is_sorted(), "{places:?}");
            assert!(places[0].abs() < 1e-9 && (places[5] - 1.0).abs() < 1e-9);
        }
        // An hour of nothing leaves room for milliseconds, unless it is to be true to scale.
        assert!(Axis::new(&found, false).place(6000) > 0.1);
        assert!(Axis::new(&found, true).place(6000) < 0.001);
    }

    #[test]
    fn durations_are_short() {
        let shown = [7, 1500, 2_500_000, 600_000_000].map(duration);
        assert_eq!(shown, ["7 µs", "1.5 ms", "2.50 s", "10.0 min"]);
    }
}
