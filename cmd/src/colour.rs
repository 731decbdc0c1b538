//! Colour, for people at a terminal who did not switch it off (<https://no-color.org>).

use std::io::IsTerminal as _;
use std::sync::OnceLock;

/// What a colour means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// All is well; something runs.
    Good,
    /// It works, but look.
    Odd,
    /// It does not work.
    Bad,
    /// Of less interest.
    Faint,
}

/// A text in a colour, where standard output shows colours.
pub(crate) fn paint(text: &str, tone: Tone) -> String {
    static WANTED: OnceLock<bool> = OnceLock::new();
    let wanted = *WANTED.get_or_init(|| {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        std::io::stdout().is_terminal() && !refused && !dumb
    });
    painted(text, tone, wanted)
}

fn painted(text: &str, tone: Tone, wanted: bool) -> String {
    if !wanted || text.is_empty() {
        return text.to_owned();
    }
    let code = match tone {
        Tone::Good => 32,
        Tone::Odd => 33,
        Tone::Bad => 31,
        Tone::Faint => 2,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_wants_colour_gets_it() {
        assert_eq!(painted("x", Tone::Bad, false), "x");
        assert_eq!(painted("x", Tone::Bad, true), "\x1b[31mx\x1b[0m");
    }
}
