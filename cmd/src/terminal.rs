//! This command's own terminal, while a process with a terminal is behind it.
//!
//! What is typed goes through as it is: signals, line editing and echo are the business of the
//! terminal inside. Whatever happens, the mode that was found comes back.

use garden::client::Input;
use garden::model::WindowSize;
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};

/// What a terminal takes for the end of input.
pub(crate) const END: u8 = 4;

/// The size of this command's terminal, if it has one.
pub(crate) fn size() -> Option<WindowSize> {
    let size = tcgetwinsize(stdin()).ok()?;
    Some(WindowSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

/// Whether standard input is a terminal.
pub(crate) fn is_input() -> bool {
    isatty(stdin())
}

/// A terminal that passes everything through, until this is dropped.
pub(crate) struct Raw(Termios);

impl Raw {
    /// Changes the mode of standard input; `None` when that is no terminal.
    pub(crate) fn enter() -> Option<Self> {
        let found = tcgetattr(stdin()).ok()?;
        let mut raw = found.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(found))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &self.0);
    }
}

/// Tells the process the size, and each new one. Ends never.
pub(crate) async fn follow_size(input: Input) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else {
        return std::future::pending().await;
    };
    loop {
        // Also at first: it may have changed since the process was asked for, unheard.
        if let Some(size) = size() {
            input.resize(size).await;
        }
        if changed.recv().await.is_none() {
            return std::future::pending().await;
        }
    }
}
