//! What `repro unmount` shows: a table and a verdict, or JSON. Pure functions of what was measured.

use std::fmt::Write as _;

use serde::Serialize;

use super::overlay::{Ended, Way};
use super::unmount::Order;
use crate::table;

/// A way is this much slower than another, or they are the same.
const CLEARLY: f64 = 5.0;
/// Less than this is no wait for a disk.
const NOTHING_MS: f64 = 5.0;

/// What was asked for, for a reader who has only this.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Setting {
    pub(super) kernel: String,
    pub(super) file_system: String,
    pub(super) disk_mbps: Option<u64>,
    pub(super) mounts: u16,
    pub(super) megabytes: u32,
    pub(super) order: Order,
}

/// What ending all mounts in one way took. Dirty and written pages in bytes, of the whole host.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Taken {
    pub(super) way: Way,
    /// Of each mount; none where the kernel has no such way.
    pub(super) ended: Vec<Ended>,
    /// Of a mount that wrote nothing.
    pub(super) bystander_ms: f64,
    /// From the first to the last.
    pub(super) total_ms: f64,
    pub(super) dirty_before: u64,
    pub(super) dirty_after: u64,
    pub(super) writeback_peak: u64,
}

impl Taken {
    /// A way that this kernel does not have.
    pub(super) fn impossible(way: Way) -> Self {
        Self {
            way,
            ended: Vec::new(),
            bystander_ms: 0.0,
            total_ms: 0.0,
            dirty_before: 0,
            dirty_after: 0,
            writeback_peak: 0,
        }
    }

    /// All mounts together, as it is the first one that pays for the others; `None` where there is
    /// none.
    fn all_ms(&self) -> Option<f64> {
        (!self.ended.is_empty()).then_some(self.total_ms)
    }

    /// The one that took longest.
    fn longest_ms(&self) -> f64 {
        let totals = self.ended.iter().map(Ended::total_ms);
        totals.fold(self.bystander_ms, f64::max)
    }
}

/// What this kernel does on this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// A plain unmount waits for the disk, a volatile one does not.
    SyncsUnlessVolatile,
    /// A plain unmount waits for the disk, and the kernel has no volatile mounts.
    Syncs,
    /// No way is clearly slower than another.
    DoesNotSync,
    /// What it takes to tell was not measured.
    Unknown,
}

/// The figures of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    setting: Setting,
    ways: Vec<Taken>,
    verdict: Verdict,
}

impl Report {
    /// Judges what was measured.
    pub(super) fn new(setting: Setting, ways: Vec<Taken>) -> Self {
        Self {
            verdict: judge(&ways),
            setting,
            ways,
        }
    }

    /// The table, with the verdict below it.
    pub(super) fn text(&self) -> String {
        let setting = &self.setting;
        let speed = setting.disk_mbps.map_or_else(
            || "as fast as it is".to_owned(),
            |speed| format!("limited to {speed} MB/s"),
        );
        let order = match setting.order {
            Order::Together => "all at once",
            Order::Serial => "one after the other",
        };
        let mut text = format!(
            "Linux {}, {} ({speed}); {} overlays with {} MB each, unmounted {order}\n\n",
            setting.kernel, setting.file_system, setting.mounts, setting.megabytes
        );
        let rows: Vec<Vec<String>> = self.ways.iter().map(row).collect();
        text.push_str(&table::format(
            &[
                "WAY",
                "CLEAR",
                "UNMOUNT",
                "MAX",
                "CLOSE",
                "BYSTANDER",
                "ALL",
                "DIRTY",
                "WRITEBACK",
            ],
            &rows,
        ));
        text.push_str(
            "\nin ms: the medians of clearing, umount(2) and closing, the longest umount(2), an overlay \
             that wrote nothing,\nand all of them. In MB: dirty pages of the host before and after, and \
             the most that were being written.\n\n",
        );
        let _ = writeln!(text, "{}", self.verdict());
        text
    }

    fn verdict(&self) -> String {
        let longest = |way| {
            let taken = self.ways.iter().find(|taken| taken.way == way);
            taken.map_or(0.0, Taken::longest_ms)
        };
        let plain = longest(Way::Plain);
        let affected = format!(
            "AFFECTED: unmounting an overlay waits until all that anybody wrote is on the disk: \
             {plain:.1} ms here."
        );
        match self.verdict {
            Verdict::SyncsUnlessVolatile => format!(
                "{affected}\nMounted with `volatile`, the slowest takes {:.1} ms.",
                longest(Way::Volatile)
            ),
            Verdict::Syncs => format!(
                "{affected}\nWithout `volatile` overlays (Linux 5.10), remove the data before the unmount."
            ),
            Verdict::DoesNotSync => {
                format!("not affected: the slowest plain unmount takes {plain:.1} ms.")
            }
            Verdict::Unknown => {
                "no verdict: it takes the way `plain` and one to compare with.".to_owned()
            }
        }
    }
}

fn judge(ways: &[Taken]) -> Verdict {
    let of = |way| ways.iter().find(|taken| taken.way == way);
    let Some(plain) = of(Way::Plain).and_then(Taken::all_ms) else {
        return Verdict::Unknown;
    };
    let clearly = |quick: f64| plain > NOTHING_MS && plain > CLEARLY * quick;
    match of(Way::Volatile) {
        Some(volatile) => match volatile.all_ms() {
            Some(quick) if clearly(quick) => Verdict::SyncsUnlessVolatile,
            Some(_) => Verdict::DoesNotSync,
            None if plain > NOTHING_MS => Verdict::Syncs,
            None => Verdict::DoesNotSync,
        },
        None => match of(Way::ClearFirst).and_then(Taken::all_ms) {
            Some(quick) if clearly(quick) => Verdict::Syncs,
            _ => Verdict::Unknown,
        },
    }
}

fn row(taken: &Taken) -> Vec<String> {
    let mut row = vec![taken.way.name().to_owned()];
    if taken.ended.is_empty() {
        row.push("this kernel has none".to_owned());
        return row;
    }
    let figure = |of: fn(&Ended) -> f64| median(taken.ended.iter().map(of)).unwrap_or_default();
    let longest = taken
        .ended
        .iter()
        .map(|ended| ended.unmount_ms)
        .fold(0.0, f64::max);
    let ms = |value: f64| format!("{value:.1}");
    let mb = |bytes: u64| bytes / 1_000_000;
    row.extend([
        ms(figure(|ended| ended.clear_ms)),
        ms(figure(|ended| ended.unmount_ms)),
        ms(longest),
        ms(figure(|ended| ended.close_ms)),
        ms(taken.bystander_ms),
        ms(taken.total_ms),
        format!("{} -> {}", mb(taken.dirty_before), mb(taken.dirty_after)),
        mb(taken.writeback_peak).to_string(),
    ]);
    row
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => values.get(middle).copied(),
        _ => Some((values.get(middle - 1)? + values.get(middle)?) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(way: Way, unmount_ms: &[f64]) -> Taken {
        let ended = unmount_ms.iter().map(|&unmount_ms| Ended {
            unmount_ms,
            ..Ended::default()
        });
        Taken {
            ended: ended.collect(),
            total_ms: unmount_ms.iter().sum(),
            ..Taken::impossible(way)
        }
    }

    #[test]
    fn verdicts() {
        let slow = || taken(Way::Plain, &[900.0, 1000.0, 1100.0]);
        let quick = |way| taken(way, &[0.3, 4.0]);
        let judged = [
            judge(&[slow(), quick(Way::Volatile)]),
            judge(&[slow(), Taken::impossible(Way::Volatile)]),
            judge(&[slow(), quick(Way::ClearFirst)]),
            judge(&[quick(Way::Plain), quick(Way::Volatile)]),
            judge(&[slow(), taken(Way::Volatile, &[800.0])]),
            judge(&[slow()]),
            judge(&[quick(Way::Volatile)]),
        ];
        assert_eq!(
            judged,
            [
                Verdict::SyncsUnlessVolatile,
                Verdict::Syncs,
                Verdict::Syncs,
                Verdict::DoesNotSync,
                Verdict::DoesNotSync,
                Verdict::Unknown,
                Verdict::Unknown,
            ]
        );
    }

    #[test]
    fn a_report_in_both_forms() {
        let setting = Setting {
            kernel: "6.1.0".to_owned(),
            file_system: "ext4".to_owned(),
            disk_mbps: Some(100),
            mounts: 2,
            megabytes: 20,
            order: Order::Serial,
        };
        let ways = vec![
            taken(Way::Plain, &[200.0, 100.0]),
            Taken::impossible(Way::Volatile),
        ];
        let report = Report::new(setting, ways);
        let text = report.text();
        assert!(
            text.contains("Linux 6.1.0, ext4 (limited to 100 MB/s)"),
            "{text}"
        );
        assert!(text.contains("plain     0.0"), "{text}");
        assert!(text.contains("this kernel has none"), "{text}");
        assert!(text.contains("AFFECTED"), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["verdict"], "syncs");
        assert_eq!(json["ways"][0]["ended"][0]["unmount_ms"], 200.0);
        assert_eq!(json["setting"]["order"], "serial");
    }

    #[test]
    fn medians() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0].into_iter()), Some(2.5));
    }
}
