//! The last of what a check said: bounded, on one line, without secrets.
//!
//! A check may print whatever it finds, and what it prints goes into events and records. Values of
//! the environment are the secrets that are known; passwords in URLs look like what they are.

/// Bytes of output that are kept of a run.
const TAIL: usize = 512;
/// Values shorter than this are no secrets: blanking them out would make every output unreadable.
const SHORTEST_SECRET: usize = 6;
const BLANK: &str = "***";

/// Values that no output may show.
#[derive(Debug, Clone, Default)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    /// The values of these `K=V` strings.
    pub(super) fn of<'a>(entries: impl IntoIterator<Item = &'a String>) -> Self {
        let values = entries
            .into_iter()
            .filter_map(|entry| entry.split_once('='));
        let mut secrets: Vec<String> = values
            .map(|(_, value)| value.trim().to_owned())
            .filter(|value| value.len() >= SHORTEST_SECRET)
            .collect();
        // Of two that overlap the longer one first, or its rest would stay.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self(secrets)
    }

    /// The text without them, printable and on one line.
    pub(super) fn blank(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.0 {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), BLANK);
            }
        }
        let text = without_passwords(&text);
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        text.trim().chars().map(printable).collect()
    }
}

/// Blanks what stands between `://` and `@` in a word.
fn without_passwords(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        clean.push_str(before);
        let ends = |c: char| c.is_whitespace() || "/?#\"'".contains(c);
        let end = after.find(ends).unwrap_or(after.len());
        let (authority, more) = after.split_at(end);
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                clean.push_str(BLANK);
                clean.push('@');
                clean.push_str(host);
            }
            None => clean.push_str(authority),
        }
        rest = more;
    }
    clean + rest
}

/// Keeps the end of what is written.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    /// More was written.
    pub(super) fn add(&mut self, piece: &[u8]) {
        // Twice the bound: a secret that is cut at the beginning must not become visible by it.
        let most = 8 * TAIL;
        let piece = piece
            .get(piece.len().saturating_sub(most)..)
            .unwrap_or_default();
        self.bytes.extend_from_slice(piece);
        let extra = self.bytes.len().saturating_sub(most);
        self.bytes.drain(..extra);
    }

    /// The end of it.
    pub(super) fn text(&self, secrets: &Secrets) -> String {
        let text = secrets.blank(&String::from_utf8_lossy(&self.bytes));
        let mut start = text.len().saturating_sub(TAIL);
        while !text.is_char_boundary(start) {
            start += 1;
        }
        text.get(start..).unwrap_or_default().to_owned()
    }
}

/// Cuts what is written into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    open: Vec<u8>,
}

impl Lines {
    /// More was written; gives the lines that have ended. Long ones are cut.
    pub(super) fn add(&mut self, piece: &[u8], mut line: impl FnMut(&str)) {
        for byte in piece {
            match byte {
                b'\n' => {
                    let text = String::from_utf8_lossy(&self.open).into_owned();
                    self.open.clear();
                    line(&text);
                }
                _ if self.open.len() < 2 * TAIL => self.open.push(*byte),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> Secrets {
        let env = ["TOKEN=hunter2hunter2", "A=hunter2", "SHORT=abc", "none"];
        Secrets::of(&env.map(str::to_owned))
    }

    #[test]
    fn values_of_the_environment_and_passwords_in_urls_are_blanked() {
        let text = "token hunter2hunter2 and hunter2, abc\nat http://me:pw@host:1/x@y http://h/";
        assert_eq!(
            secrets().blank(text),
            "token *** and ***, abc at http://***@host:1/x@y http://h/"
        );
    }

    #[test]
    fn a_tail_is_bounded_and_cuts_no_secret_open() {
        let mut tail = Tail::default();
        tail.add(&[b'x'; 10_000]);
        tail.add("hunter2 ".as_bytes());
        tail.add("ü".repeat(400).as_bytes());
        let text = tail.text(&secrets());
        assert!(text.len() <= TAIL && !text.contains("unter2"), "{text}");
        assert!(text.ends_with('ü'));
    }

    #[test]
    fn lines_come_whole() {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for piece in ["on", "e\ntwo\n", "thr"] {
            lines.add(piece.as_bytes(), |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["one", "two"]);
    }
}
