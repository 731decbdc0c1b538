//! `garden events`: what happens on a server.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;
use garden::events::{Event, EventFilter, EventKind};
use garden::model::Handle;

use super::print;
use crate::reach::Target;
use crate::{streams, values};

/// Show what happens, and with --since what has happened
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  garden events
  garden events web --kind health,check --since 10m --no-follow")]
pub(crate) struct EventsArgs {
    /// Only of this container
    #[arg(value_name = "NAME", value_parser = values::handle)]
    name: Option<Handle>,
    /// Only of these kinds, like health or exited; several with commas
    #[arg(long, value_name = "KINDS", value_delimiter = ',')]
    kind: Vec<String>,
    /// Also what happened since this long ago, as far as it is remembered
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    since: Option<std::time::Duration>,
    /// End after what is remembered
    #[arg(long)]
    no_follow: bool,
    /// A line of JSON for each
    #[arg(long)]
    json: bool,
}

/// Prints them until interrupted.
pub(crate) async fn run(target: &Target, args: EventsArgs) -> Result<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default();
    let since = args.since.map(|since| now.saturating_sub(since));
    let filter = EventFilter {
        handle: args.name.map(String::from),
        kinds: args.kind,
        since_ms: since.map(|since| u64::try_from(since.as_millis()).unwrap_or(0)),
        follow: !args.no_follow,
    };
    let mut events = target.server().await?.events(&filter).await?;
    let interrupted = streams::interrupted();
    tokio::pin!(interrupted);
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            code = &mut interrupted => return Ok(code),
        };
        let Some(event) = event else { return Ok(0) };
        if args.json {
            print(&format!("{}\n", serde_json::to_string(&event)?))?;
        } else {
            print(&format!("{}\n", line(&event)))?;
        }
    }
}

fn line(event: &Event) -> String {
    let mut text = format!("{}  {}", time(event.time_ms), event.handle);
    if let Some(process) = &event.process {
        text.push('/');
        text.push_str(process);
    }
    text.push_str("  ");
    text.push_str(event.kind.name());
    let detail = match &event.kind {
        EventKind::Exited { code, oom } | EventKind::PeaExited { code, oom } => {
            format!("{code}{}", if *oom { " (out of memory)" } else { "" })
        }
        EventKind::Health {
            from,
            to,
            reason,
            output,
        } => {
            let output = match output.as_str() {
                "" => String::new(),
                output => format!(" ({output})"),
            };
            format!("{from} -> {to}: {reason}{output}")
        }
        EventKind::Check { check, verdict } => format!("{check} {verdict:?}").to_lowercase(),
        EventKind::CheckOutput { check, line } => format!("{check}: {line}"),
        EventKind::TeardownStuck { stage } => stage.clone(),
        EventKind::Missed { count } => format!("{count} events: this reader was too slow"),
        _ => String::new(),
    };
    if !detail.is_empty() {
        text.push_str("  ");
        text.push_str(&detail);
    }
    text
}

/// The time of day, in UTC, with milliseconds.
pub(super) fn time(ms: u64) -> String {
    let seconds = ms / 1000;
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!(
        "{hours:02}:{minutes:02}:{:02}.{:03}Z",
        seconds % 60,
        ms % 1000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = Event {
            sequence: 1,
            time_ms: 3_723_004,
            handle: "web".into(),
            process: Some("p".into()),
            kind: EventKind::Exited {
                code: 137,
                oom: true,
            },
        };
        assert_eq!(
            line(&event),
            "01:02:03.004Z  web/p  exited  137 (out of memory)"
        );
    }
}
