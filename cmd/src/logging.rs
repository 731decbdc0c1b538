//! Logs: JSON for a server, nothing but problems for a command. `GARDEN_LOG` chooses more.

use tracing_subscriber::EnvFilter;

/// Starts to log to standard error.
pub(crate) fn start(server: bool) {
    let default = if server { "info" } else { "error" };
    let filter = EnvFilter::try_from_env("GARDEN_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if server {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .init();
    } else {
        builder.with_ansi(false).with_target(false).init();
    }
}
