//! Logs: Guardian's shape on standard output for a server, plain problems on standard error for a
//! command. `GARDEN_LOG` chooses more, in `tracing`'s words.
//!
//! A server's lines are what operators' scripts expect of Guardian (lager): one JSON object each, with
//! `timestamp`, `level`, `source`, `message` and `data`. The message is a path,
//! `guardian.<session>.<what happened>`; the session is the request that is carried out, or the part of
//! the server that speaks, and everything else is in `data`. The level can be changed while it runs.

use std::fmt::{self, Write as _};
use std::sync::OnceLock;

use clap::ValueEnum;
use garden::debug::Levels;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

const VARIABLE: &str = "GARDEN_LOG";

/// The longest last part of a message.
const MAX_ACTION: usize = 80;

/// What a server logs: this, and what is worse. Guardian's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    /// Every step.
    Debug,
    /// What was done.
    Info,
    /// What went wrong.
    Error,
    /// Nothing: a server that cannot go on says so and ends.
    Fatal,
}

impl LogLevel {
    fn filter(self) -> EnvFilter {
        EnvFilter::new(match self {
            Self::Debug => "info,garden=debug,garden_peas=debug,garden_rootfs=debug",
            Self::Info => "info",
            Self::Error => "warn",
            Self::Fatal => "off",
        })
    }
}

/// The filter that is in force, to be replaced; and what it is called.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts to log problems of a command to standard error.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
}

/// Starts to log as a server, to standard output.
pub(crate) fn start_server(level: LogLevel) {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| level.filter());
    let (filter, handle) = reload::Layer::new(filter);
    let _ = FILTER.set(handle);
    let lines = tracing_subscriber::fmt::layer()
        .fmt_fields(JsonFields::new())
        .event_format(Lager);
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .init();
}

/// How the debug server sees and changes what is logged.
pub(crate) fn levels() -> Levels {
    Levels {
        get: Box::new(|| {
            let shown = FILTER
                .get()
                .map(|all| all.with_current(ToString::to_string));
            shown.and_then(Result::ok).unwrap_or_default()
        }),
        set: Box::new(|name| {
            let level = LogLevel::from_str(name, false)?;
            let handle = FILTER.get().ok_or("the log of this process is fixed")?;
            handle
                .reload(level.filter())
                .map_err(|error| error.to_string())
        }),
    }
}

/// Lines in lager's shape.
struct Lager;

impl<S> FormatEvent<S, JsonFields> for Lager
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        let mut session = None;
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            if let Some(text) = span.extensions().get::<FormattedFields<JsonFields>>()
                && let Ok(more) = serde_json::from_str::<Map<String, Value>>(text)
            {
                fields.data.extend(more);
            }
            fields.put("session", span.id().into_u64().to_string().into());
            if let Some(Value::String(request)) = fields.data.remove("request") {
                session = Some(session_of(&request));
            }
        }
        event.record(&mut fields);
        let metadata = event.metadata();
        let speaker = metadata.target().rsplit("::").next().unwrap_or_default();
        let session = session.unwrap_or_else(|| kebab(speaker));
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let message = format!("guardian.{session}.{}", action(&fields.message));
        fields.put("text", fields.message.clone().into());
        // In this order, which is how a person reads it.
        let text = |text: &str| Value::from(text).to_string();
        writeln!(
            writer,
            "{{\"timestamp\":{},\"level\":{},\"source\":\"guardian\",\"message\":{},\"data\":{}}}",
            text(&timestamp),
            text(level_of(*metadata.level())),
            text(&message),
            Value::Object(fields.data),
        )
    }
}

fn level_of(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    }
}

/// What Guardian calls a request.
fn session_of(request: &str) -> String {
    match request {
        "List" => "list-containers".to_owned(),
        other => kebab(other),
    }
}

/// `BulkInfo` and `bulk_info` as `bulk-info`.
fn kebab(name: &str) -> String {
    let mut words = String::with_capacity(name.len() + 4);
    for (at, character) in name.char_indices() {
        match character {
            '_' | ' ' | '.' => words.push('-'),
            upper if upper.is_ascii_uppercase() => {
                if at > 0 {
                    words.push('-');
                }
                words.push(upper.to_ascii_lowercase());
            }
            other => words.push(other),
        }
    }
    words
}

/// The last part of a message, out of a sentence.
fn action(sentence: &str) -> String {
    let mut action = String::new();
    let head = sentence.split([':', ';', '(']).next().unwrap_or_default();
    for word in head
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
    {
        if action.len() + word.len() >= MAX_ACTION {
            break;
        }
        if !action.is_empty() {
            action.push('-');
        }
        let _ = write!(action, "{}", word.to_lowercase());
    }
    action
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    data: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, name: &str, value: Value) {
        self.data.insert(name.to_owned(), value);
    }

    fn take(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => self.put(name, value),
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.take(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.take(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.take(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_what_operators_look_for() {
        let kept = Kept::default();
        let writer = kept.clone();
        let lines = tracing_subscriber::fmt::layer()
            .fmt_fields(JsonFields::new())
            .event_format(Lager)
            .with_writer(move || writer.clone());
        tracing::subscriber::with_default(Registry::default().with(lines), || {
            let span =
                tracing::info_span!("garden-server", request = "BulkInfo", handle = "h\n\"1");
            span.in_scope(|| tracing::error!(error = "no", n = 3, "Request failed: really"));
            tracing::info!(target: "garden::manager::cleaner", "done");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2, "{text}");
        let first = &lines[0];
        assert_eq!(first["message"], "guardian.bulk-info.request-failed");
        assert_eq!(first["level"], "error");
        assert_eq!(first["source"], "guardian");
        assert_eq!(first["data"]["handle"], "h\n\"1");
        assert_eq!(first["data"]["n"], 3);
        assert!(first["data"]["session"].is_string());
        assert!(first["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!(lines[1]["message"], "guardian.cleaner.done");
        assert!(text.starts_with("{\"timestamp\":"), "{text}");
    }

    #[test]
    fn names_and_sentences() {
        assert_eq!(session_of("List"), "list-containers");
        assert_eq!(kebab("StreamIn"), "stream-in");
        assert_eq!(
            action("Handle 'x' already, in use!"),
            "handle-x-already-in-use"
        );
        assert_eq!(action(""), "");
        assert!(action(&"word ".repeat(100)).len() <= MAX_ACTION);
    }
}
