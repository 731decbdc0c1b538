//! Logs as Cloud Foundry's programs write them: one JSON object a line, on standard error or at
//! the end of a file.
//!
//! ```text
//! {"timestamp":"2026-01-02T03:04:05.000000006Z","level":"info","source":"grootfs",
//!  "message":"grootfs.create.created-an-image","data":{"id":"web-1"}}
//! ```
//!
//! Whoever runs a plugin reads these lines and hands them on. Without a level, which is the rule,
//! nothing is set up and nothing costs anything.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Debug,
    Info,
    Error,
    Fatal,
}

impl Level {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "debug" => Some(Self::Debug),
            "info" => Some(Self::Info),
            "error" => Some(Self::Error),
            "fatal" => Some(Self::Fatal),
            _ => None,
        }
    }

    fn of(level: tracing::Level) -> Self {
        match level {
            tracing::Level::ERROR | tracing::Level::WARN => Self::Error,
            tracing::Level::INFO => Self::Info,
            _ => Self::Debug,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Error => "error",
            Self::Fatal => "fatal",
        }
    }
}

/// Starts to log what happens in a command. Nothing here logs as fatal, so that level is silence.
pub(super) fn start(level: Level, file: Option<&Path>, command: &'static str) -> io::Result<()> {
    if level == Level::Fatal {
        return Ok(());
    }
    let file = file.map(open).transpose()?;
    let lines = Lines {
        level,
        command,
        file: Mutex::new(file),
    };
    // Somebody else's logging is as good.
    let _ = tracing_subscriber::registry().with(lines).try_init();
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o644).open(path)
}

struct Lines {
    level: Level,
    command: &'static str,
    file: Mutex<Option<File>>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        // What libraries below say at these levels is no operator's concern.
        metadata.target().starts_with("garden") && Level::of(*metadata.level()) >= self.level
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = format!("grootfs.{}.{}", self.command, slug(&fields.message));
        let level = Level::of(*event.metadata().level());
        let line = line(level, &message, fields.data);
        // One write: lines of processes that log to one file do not mix.
        let mut file = self
            .file
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = match &mut *file {
            Some(file) => file.write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }
}

fn line(level: Level, message: &str, data: Map<String, Value>) -> String {
    let object = serde_json::json!({
        "timestamp": timestamp(),
        "level": level.name(),
        "source": "grootfs",
        "message": message,
        "data": data,
    });
    format!("{object}\n")
}

/// Words joined by dashes, as Cloud Foundry names what happens.
fn slug(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '.');
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    words.join("-")
}

/// The time in RFC 3339, with nanoseconds.
fn timestamp() -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let (date, seconds) = (now.tv_sec.div_euclid(86_400), now.tv_sec.rem_euclid(86_400));
    let (year, month, day) = civil(date);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        now.tv_nsec
    )
}

/// The date of a day counted from 1970-01-01, in the calendar of today.
fn civil(days: i64) -> (i64, i64, i64) {
    // Years that begin in March end with the day that is sometimes there.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day = days.rem_euclid(146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + later, month, date)
}

#[derive(Default)]
struct Fields {
    message: String,
    data: Map<String, Value>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.data.insert(field.name().to_owned(), text.into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.data.insert(field.name().to_owned(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.data.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.data.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.data.insert(field.name().to_owned(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_lagers() {
        let mut data = Map::new();
        data.insert("id".to_owned(), "a\nb".into());
        let text = line(Level::Info, "grootfs.create.done", data);
        assert!(text.ends_with("}\n") && text.matches('\n').count() == 1);
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "info");
        assert_eq!(line["data"]["id"], "a\nb");
        assert_eq!(slug("cannot roll back: a tree"), "cannot-roll-back-a-tree");
    }

    #[test]
    fn dates_are_right() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_782), (2026, 11, 25));
        assert_eq!(civil(-1), (1969, 12, 31));
    }
}
