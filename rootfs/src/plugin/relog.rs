//! A plugin's log lines, handed on to the server's log.
//!
//! Plugins log lager's JSON, one object a line: level and message are kept, the data as one field,
//! the time as `original_timestamp`. Any other line is an error line of the plugin.

use serde::Deserialize;
use serde_json::Value;

/// A longer line is cut here.
const LONGEST_LINE: usize = 64 << 10;

/// Takes the bytes of a standard error, in any pieces.
pub(super) struct Relog {
    action: &'static str,
    line: Vec<u8>,
    cut: bool,
}

/// A line of lager's, in its old form (`log_level`, a number) or its new one (`level`, a word).
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(default)]
    timestamp: Value,
    #[serde(default)]
    level: Option<String>,
    #[serde(default)]
    log_level: Option<u8>,
    message: String,
    #[serde(default)]
    data: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Debug,
    Info,
    Error,
}

impl Relog {
    pub(super) fn new(action: &'static str) -> Self {
        Self {
            action,
            line: Vec::new(),
            cut: false,
        }
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let (piece, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            let room = LONGEST_LINE.saturating_sub(self.line.len());
            self.cut |= piece.len() > room;
            self.line
                .extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
            bytes = rest.get(1..).unwrap_or_default();
            if end.is_some() {
                self.finish();
            }
        }
    }

    /// Hands on what has no line end.
    pub(super) fn finish(&mut self) {
        let line = std::mem::take(&mut self.line);
        let cut = std::mem::take(&mut self.cut);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        let action = self.action;
        match parse(text) {
            Some((level, line)) => {
                let Line {
                    timestamp,
                    message,
                    data,
                    ..
                } = line;
                let timestamp = timestamp
                    .as_str()
                    .map_or_else(|| timestamp.to_string(), str::to_owned);
                match level {
                    Level::Debug => {
                        tracing::debug!(action, %data, original_timestamp = timestamp, "{message}");
                    }
                    Level::Info => {
                        tracing::info!(action, %data, original_timestamp = timestamp, "{message}");
                    }
                    Level::Error => {
                        tracing::error!(action, %data, original_timestamp = timestamp, "{message}");
                    }
                }
            }
            None => tracing::error!(action, output = text, cut, "the image plugin says"),
        }
    }
}

fn parse(text: &str) -> Option<(Level, Line)> {
    let line: Line = serde_json::from_str(text).ok()?;
    let level = match (line.level.as_deref(), line.log_level) {
        (Some("debug"), _) | (None, Some(0)) => Level::Debug,
        (Some("info"), _) | (None, Some(1)) => Level::Info,
        (Some("error" | "fatal"), _) | (None, Some(2 | 3)) => Level::Error,
        _ => return None,
    };
    Some((level, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_lager_are_known() {
        let new = r#"{"timestamp":"2026-01-02T03:04:05Z","level":"info","source":"grootfs",
            "message":"grootfs.create.start","data":{"id":"x"}}"#;
        let (level, line) = parse(new).unwrap();
        assert_eq!(
            (level, &*line.message),
            (Level::Info, "grootfs.create.start")
        );
        assert_eq!(line.data["id"], "x");
        let old =
            r#"{"timestamp":"1500000000.1","source":"g","message":"m","log_level":2,"data":{}}"#;
        assert_eq!(parse(old).unwrap().0, Level::Error);
        assert!(parse("panic: oh").is_none());
        assert!(parse(r#"{"message":"no level"}"#).is_none());
    }

    #[test]
    fn lines_are_put_together_and_bounded() {
        let mut relog = Relog::new("create");
        relog.write(b"ab");
        relog.write(b"c");
        assert_eq!(relog.line, b"abc");
        relog.write(b"\nd");
        assert_eq!(relog.line, b"d");
        relog.write(&vec![b'x'; LONGEST_LINE * 2]);
        assert_eq!((relog.line.len(), relog.cut), (LONGEST_LINE, true));
        relog.write(b"\n");
        assert_eq!((relog.line.len(), relog.cut), (0, false));
    }
}
